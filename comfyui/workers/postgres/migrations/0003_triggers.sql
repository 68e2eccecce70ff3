-- What follows from a change of a task's status, whoever changes it. Safe to run again.

-- Queued anew after its end, a task starts over: other result, all attempts. Queued in mid-run, its worker loses it.
create or replace function comfy_status_changed() returns trigger
language plpgsql as $comfy$
begin
    if new."status" = 'queued' then
        new.lease_token := null;
        new.lease_expires_at := null;
        if old."status" in ('complete', 'failed', 'cancelled') then
            new.runs := old.runs + 1;
            new."attempts" := 0;
            new."error" := null;
            new."progress" := null;
            new."output_url" := null;
            new."outputs" := null;
            new."result" := null;
            new."finished_at" := null;
        end if;
    elsif new."status" = 'cancelled' then
        new."finished_at" := coalesce(new."finished_at", clock_timestamp());
    end if;
    return new;
end
$comfy$;

-- Wakes the workers that listen: they need not wait for their next poll or heartbeat.
create or replace function comfy_notify() returns trigger
language plpgsql as $comfy$
begin
    if new."task_type" in ('comfy') and new."status" in ('queued', 'cancelled') then
        perform pg_notify('comfy_tasks', new."id"::text);
    end if;
    return null;
end
$comfy$;

drop trigger if exists comfy_status_changed on "tasks";
create trigger comfy_status_changed before update of "status" on "tasks"
    for each row when (old."status" is distinct from new."status") execute function comfy_status_changed();

drop trigger if exists comfy_notify on "tasks";
create trigger comfy_notify after insert or update of "status" on "tasks"
    for each row execute function comfy_notify();
