-- What a worker does with tasks, each in one step. Both ways of connecting call these: SQL, and Supabase's HTTPS API.
-- Safe to run again. Names and statuses as in 0001_tables.sql.

create or replace function comfy_schema_version() returns integer
language sql immutable as 'select 1';

-- Takes the oldest task that is due, else none. The token is the caller's: asked again with the same one, because the
-- answer was lost, it gives the same task. A task whose worker vanished is taken again, up to p_max_attempts.
create or replace function comfy_claim_task(
    p_worker_id text, p_lease_token uuid, p_lease_seconds double precision, p_max_attempts integer
) returns table (task_id text, run integer, attempt integer, task_params jsonb)
language plpgsql as $comfy$
declare
    v_worker "tasks"."worker_id"%type := p_worker_id;
    v_id "tasks"."id"%type;
begin
    return query
        select t."id"::text, t.runs, t."attempts"::integer, t."params"::jsonb
        from "tasks" t where t.lease_token = p_lease_token and t."status" = 'in_progress';
    if found then
        return;
    end if;

    update "tasks" t
    set "status" = 'failed', "finished_at" = clock_timestamp(), lease_token = null, lease_expires_at = null,
        "error" = format('given up after %s attempts: each time the worker vanished, the last was %s',
                         t."attempts", t."worker_id")
    where t."id" in (
        select d."id" from "tasks" d
        where d."task_type" = 'comfy' and d."status" = 'in_progress'
            and d.lease_expires_at < clock_timestamp() and d."attempts" >= p_max_attempts
        for update skip locked
    );

    select n."id" into v_id from "tasks" n
    where n."task_type" = 'comfy' and n."status" = 'in_progress' and n.lease_expires_at < clock_timestamp()
    order by n.lease_expires_at limit 1 for update skip locked;
    if v_id is null then
        select n."id" into v_id from "tasks" n
        where n."task_type" = 'comfy' and n."status" = 'queued'
            and (n.run_after is null or n.run_after <= clock_timestamp())
        order by n."created_at" limit 1 for update skip locked;
    end if;
    if v_id is null then
        return;
    end if;

    return query
        update "tasks" t
        set "status" = 'in_progress', "worker_id" = v_worker, "attempts" = t."attempts" + 1, "error" = null,
            "started_at" = clock_timestamp(), "progress" = 0, "progress_note" = null, lease_token = p_lease_token,
            lease_expires_at = clock_timestamp() + make_interval(secs => p_lease_seconds), run_after = null
        where t."id" = v_id
        returning t."id"::text, t.runs, t."attempts"::integer, t."params"::jsonb;
end
$comfy$;

-- A worker's sign of life, and with a task the renewal of its lease. Answers 'held'; 'stop' when the task was cancelled or
-- deleted; 'lost' when somebody else has it or may take it now.
create or replace function comfy_heartbeat(
    p_worker_id text, p_worker_status text, p_task_id text default null, p_lease_token uuid default null,
    p_lease_seconds double precision default 60, p_progress double precision default null, p_note text default null
) returns text
language plpgsql as $comfy$
declare
    v_worker "workers".id%type := p_worker_id;
    v_id "tasks"."id"%type := p_task_id;
    v_found boolean;
begin
    insert into "workers" as w (id, status, current_task_id, last_heartbeat)
    values (v_worker, p_worker_status, v_id, clock_timestamp())
    on conflict (id) do update set status = excluded.status, current_task_id = excluded.current_task_id,
        last_heartbeat = excluded.last_heartbeat;
    if v_id is null then
        return 'held';
    end if;
    update "tasks" t
    set lease_expires_at = clock_timestamp() + make_interval(secs => p_lease_seconds),
        "progress" = coalesce(p_progress, t."progress"), "progress_note" = coalesce(p_note, t."progress_note")
    where t."id" = v_id and t.lease_token = p_lease_token and t."status" = 'in_progress';
    if found then
        return 'held';
    end if;
    select t."status" = 'cancelled' into v_found from "tasks" t where t."id" = v_id;
    return case when v_found is distinct from false then 'stop' else 'lost' end;
end
$comfy$;

-- The end of a task whose files are stored. False: the lease was lost, nothing was written. True again when asked again.
create or replace function comfy_complete_task(
    p_task_id text, p_lease_token uuid, p_output_url text, p_outputs jsonb
) returns boolean
language plpgsql as $comfy$
declare
    v_id "tasks"."id"%type := p_task_id;
begin
    update "tasks" t
    set "status" = 'complete', "output_url" = p_output_url, "outputs" = p_outputs, "progress" = 1, "progress_note" = null,
        "error" = null, "finished_at" = clock_timestamp(), lease_expires_at = null
    where t."id" = v_id and t.lease_token = p_lease_token and t."status" in ('in_progress', 'complete');
    return found;
end
$comfy$;

-- A try that did not work out. With p_retry the task is queued again, to be taken after p_delay_seconds, unless this was
-- its last attempt. False: the lease was lost, nothing was written.
create or replace function comfy_fail_task(
    p_task_id text, p_lease_token uuid, p_error text, p_retry boolean, p_max_attempts integer,
    p_delay_seconds double precision default 0
) returns boolean
language plpgsql as $comfy$
declare
    v_id "tasks"."id"%type := p_task_id;
begin
    update "tasks" t
    set "status" = 'queued', "error" = p_error, lease_token = null, lease_expires_at = null,
        run_after = clock_timestamp() + make_interval(secs => p_delay_seconds)
    where t."id" = v_id and t.lease_token = p_lease_token and t."status" = 'in_progress'
        and p_retry and t."attempts" < p_max_attempts;
    if found then
        return true;
    end if;
    update "tasks" t
    set "status" = 'failed', "error" = p_error, "finished_at" = clock_timestamp(), lease_expires_at = null
    where t."id" = v_id and t.lease_token = p_lease_token and t."status" in ('in_progress', 'failed');
    return found;
end
$comfy$;
