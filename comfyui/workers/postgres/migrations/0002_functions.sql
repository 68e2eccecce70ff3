-- What a worker does with tasks, each in one step. Both ways of connecting call these: SQL, and Supabase's HTTPS API.
-- Safe to run again. Names and statuses as in 0001_tables.sql.

create or replace function comfy_schema_version() returns integer
language sql immutable as 'select 3';

-- Takes the task that is due with the highest priority, of these the oldest; else none. The token is the caller's: asked
-- again with the same one, because the answer was lost, it gives the same task. A task whose worker vanished is taken
-- again, up to p_max_attempts. A worker whose row an orchestrator has set to terminating gets none.
do $comfy$
declare
    v_before regprocedure := to_regprocedure('comfy_claim_task(text, uuid, double precision, integer)');
begin
    -- Until version 2 it did not give the type of the task, and what a function gives cannot be replaced.
    if pg_get_function_result(v_before) not like '%task_kind%' then
        drop function comfy_claim_task(text, uuid, double precision, integer);
    end if;
end
$comfy$;

create or replace function comfy_claim_task(
    p_worker_id text, p_lease_token uuid, p_lease_seconds double precision, p_max_attempts integer
) returns table (task_id text, run integer, attempt integer, task_params jsonb, task_kind text)
language plpgsql as $comfy$
declare
    v_worker "tasks"."worker_id"%type := p_worker_id;
    v_id "tasks"."id"%type;
    v_ours text[] := array['starting', 'waiting', 'idle', 'working', 'stopped', 'dead'];
begin
    return query
        select t."id"::text, t.runs, t."attempts"::integer, t."params"::jsonb, t."task_type"::text
        from "tasks" t where t.lease_token = p_lease_token and t."status" = 'in_progress';
    if found then
        return;
    end if;

    -- The rows of killed workers do not go on saying that they work.
    update "workers" w
    set status = case when w.status::text = any (v_ours) then 'dead' else w.status end, current_task_id = null,
        alive_until = null
    where w.id in (select d.id from "workers" d where d.alive_until < clock_timestamp() for update skip locked);
    if exists (
        select from "workers" w
        where w.id::text = p_worker_id and w.status::text = any (string_to_array('terminating', '|'))
    ) then
        return;
    end if;

    update "tasks" t
    set "status" = 'failed', "finished_at" = clock_timestamp(), lease_token = null, lease_expires_at = null,
        "error" = format('given up after %s attempts: each time the worker vanished, the last was %s',
                         t."attempts", t."worker_id"),
        "result" = jsonb_build_object('status', 'error', 'error_type', 'worker_vanished', 'retryable', false)
    where t."id" in (
        select d."id" from "tasks" d
        where d."task_type" in ('comfy') and d."status" = 'in_progress'
            and d.lease_expires_at < clock_timestamp() and coalesce(d."attempts", 0) >= p_max_attempts
        for update skip locked
    );

    select n."id" into v_id from "tasks" n
    where n."task_type" in ('comfy') and n."status" = 'in_progress' and n.lease_expires_at < clock_timestamp()
    order by n.lease_expires_at limit 1 for update skip locked;
    if v_id is null then
        select n."id" into v_id from "tasks" n
        where n."task_type" in ('comfy') and n."status" = 'queued'
            and (n.run_after is null or n.run_after <= clock_timestamp())
        order by coalesce(n."priority", 0) desc, n."created_at" nulls first limit 1 for update skip locked;
    end if;
    if v_id is null then
        return;
    end if;

    return query
        update "tasks" t
        set "status" = 'in_progress', "worker_id" = v_worker, "attempts" = coalesce(t."attempts", 0) + 1, "error" = null,
            "result" = null, "started_at" = clock_timestamp(), "progress" = 0, "progress_note" = null, lease_token = p_lease_token,
            lease_expires_at = clock_timestamp() + make_interval(secs => p_lease_seconds), run_after = null
        where t."id" = v_id
        returning t."id"::text, t.runs, t."attempts"::integer, t."params"::jsonb, t."task_type"::text;
end
$comfy$;

-- Renews the lease of a task. Answers 'held'; 'stop' when the task was cancelled or deleted; 'lost' when another worker
-- has it or may take it now. It does not touch the worker's row: whatever is wrong there, a task that runs is not taken away.
create or replace function comfy_renew_lease(
    p_task_id text, p_lease_token uuid, p_lease_seconds double precision,
    p_progress double precision default null, p_note text default null
) returns text
language plpgsql as $comfy$
declare
    v_id "tasks"."id"%type := p_task_id;
    v_gone boolean;
begin
    update "tasks" t
    set lease_expires_at = clock_timestamp() + make_interval(secs => p_lease_seconds),
        "progress" = coalesce(p_progress, t."progress"), "progress_note" = coalesce(p_note, t."progress_note")
    where t."id" = v_id and t.lease_token = p_lease_token and t."status" = 'in_progress';
    if found then
        return 'held';
    end if;
    select t."status" = 'cancelled' into v_gone from "tasks" t where t."id" = v_id;
    return case when v_gone is distinct from false then 'stop' else 'lost' end;
end
$comfy$;

-- A worker's sign of life. p_state: 1 starting, 2 waiting for ComfyUI, 3 idle, 4 working, 5 stopped. False: an
-- orchestrator has set the row to terminating, so the worker takes nothing more. A status that is not one of ours is left
-- as it is. The row is updated first, since an orchestrator may have made it with columns that we know nothing of.
create or replace function comfy_worker_seen(
    p_worker_id text, p_state integer, p_task_id text default null, p_alive_seconds double precision default 60
) returns boolean
language plpgsql as $comfy$
declare
    v_worker "workers".id%type := p_worker_id;
    v_task "workers".current_task_id%type := p_task_id;
    v_ours text[] := array['starting', 'waiting', 'idle', 'working', 'stopped', 'dead'];
    v_status "workers".status%type := v_ours[p_state];
    v_until timestamptz := case when p_state < 5 then clock_timestamp() + make_interval(secs => p_alive_seconds) end;
    v_now text;
begin
    update "workers" w
    set status = case when w.status is null or w.status::text = any (v_ours) then v_status else w.status end,
        current_task_id = v_task, last_heartbeat = clock_timestamp(), alive_until = v_until
    where w.id = v_worker
    returning w.status::text into v_now;
    if not found then
        insert into "workers" (id, status, current_task_id, last_heartbeat, alive_until)
        values (v_worker, v_status, v_task, clock_timestamp(), v_until);
        return true;
    end if;
    return v_now <> all (string_to_array('terminating', '|'));
end
$comfy$;

-- What workers of version 1 call: they finish their tasks while the new ones start.
create or replace function comfy_heartbeat(
    p_worker_id text, p_worker_status text, p_task_id text default null, p_lease_token uuid default null,
    p_lease_seconds double precision default 60, p_progress double precision default null, p_note text default null
) returns text
language plpgsql as $comfy$
begin
    perform comfy_worker_seen(
        p_worker_id, case when p_task_id is null then 3 else 4 end, p_task_id, p_lease_seconds
    );
    if p_task_id is null then
        return 'held';
    end if;
    return comfy_renew_lease(p_task_id, p_lease_token, p_lease_seconds, p_progress, p_note);
end
$comfy$;

-- The end of a task whose files are stored. False: the lease was lost, nothing was written. True again when asked again.
drop function if exists comfy_complete_task(text, uuid, text, jsonb);
create or replace function comfy_complete_task(
    p_task_id text, p_lease_token uuid, p_output_url text, p_outputs jsonb, p_result jsonb default null
) returns boolean
language plpgsql as $comfy$
declare
    v_id "tasks"."id"%type := p_task_id;
begin
    update "tasks" t
    set "status" = 'complete', "output_url" = p_output_url, "outputs" = p_outputs, "result" = p_result, "progress" = 1, "progress_note" = null,
        "finished_at" = clock_timestamp(), lease_expires_at = null,
        -- Complete in part: an output that could not be delivered has the reason in place of its link.
        "error" = (
            select 'partial: ' || count(*) filter (where o.value ? 'error') || ' of ' || count(*)
                || ' files could not be delivered'
            from jsonb_array_elements(p_outputs) o
            having count(*) filter (where o.value ? 'error') > 0
        )
    where t."id" = v_id and t.lease_token = p_lease_token and t."status" in ('in_progress', 'complete');
    return found;
end
$comfy$;

-- A try that did not work out. With p_retry the task is queued again, to be taken after p_delay_seconds, unless this was
-- its last attempt. p_outputs: the files of other nodes, when one has failed. False: the lease was lost, nothing was
-- written.
drop function if exists comfy_fail_task(text, uuid, text, boolean, integer, double precision);
drop function if exists comfy_fail_task(text, uuid, text, boolean, integer, double precision, jsonb);
create or replace function comfy_fail_task(
    p_task_id text, p_lease_token uuid, p_error text, p_retry boolean, p_max_attempts integer,
    p_delay_seconds double precision default 0, p_outputs jsonb default null, p_result jsonb default null
) returns boolean
language plpgsql as $comfy$
declare
    v_id "tasks"."id"%type := p_task_id;
begin
    update "tasks" t
    set "status" = 'queued', "error" = p_error, "result" = p_result, lease_token = null, lease_expires_at = null,
        run_after = clock_timestamp() + make_interval(secs => p_delay_seconds)
    where t."id" = v_id and t.lease_token = p_lease_token and t."status" = 'in_progress'
        and p_retry and coalesce(t."attempts", 0) < p_max_attempts;
    if found then
        return true;
    end if;
    update "tasks" t
    set "status" = 'failed', "error" = p_error, "finished_at" = clock_timestamp(), lease_expires_at = null,
        "outputs" = coalesce(p_outputs, t."outputs"), "result" = p_result
    where t."id" = v_id and t.lease_token = p_lease_token and t."status" in ('in_progress', 'failed');
    return found;
end
$comfy$;

-- The tasks that no worker will take again by itself: failed ones, and ones in progress that no worker holds.
drop view if exists comfy_dead_tasks;
create view comfy_dead_tasks as
    select t."id"::text as task_id, t."status"::text as status, t."attempts" as attempts, t."worker_id" as worker_id,
        t."error" as error, t."created_at" as created_at, t."started_at" as started_at, t."finished_at" as finished_at
    from "tasks" t
    where t."task_type" in ('comfy') and (
        t."status" = 'failed'
        or (t."status" = 'in_progress' and (t.lease_expires_at is null or t.lease_expires_at < clock_timestamp()))
    );
