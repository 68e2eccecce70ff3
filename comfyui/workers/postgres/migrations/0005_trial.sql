-- Tries everything that a worker does, on the tables as they are, and undoes it. Tables that others made may have columns
-- that must not be empty, other types, constraints and triggers; it is told now, and not by tasks that look dead later.

do $comfy$
declare
    v_step text;
    v_task text;
    v_token uuid := gen_random_uuid();
    v_worker text := format('trial-%s', v_token);
begin
    begin
        v_step := 'row in the table of workers';
        perform comfy_worker_seen(v_worker, 3);

        v_step := 'claim';
        begin
            insert into "tasks" ("task_type", "status", "params") values ('comfy', 'queued', '{}');
        exception when integrity_constraint_violation then
            -- A task needs more columns than we know of; one that is there has them.
            update "tasks" set "task_type" = 'comfy', "status" = 'queued', run_after = null
            where "id" = (select "id" from "tasks" limit 1 for update skip locked);
            if not found then
                raise warning 'no claim could be tried, since there is no task yet: %', sqlerrm;
                raise exception using errcode = 'CMFY1';
            end if;
        end;
        select c.task_id into v_task from comfy_claim_task(v_worker, v_token, 60, 2147483647) c;
        if v_task is null then
            raise exception 'a queued task was not found';
        end if;

        v_step := 'heartbeat';
        perform comfy_worker_seen(v_worker, 4, v_task);
        if comfy_renew_lease(v_task, v_token, 60, 0.5, 'trial') <> 'held' then
            raise exception 'the lease of a claimed task was not held';
        end if;

        v_step := 'completion';
        begin
            if not comfy_complete_task(v_task, v_token, 'https://example.com/trial.png', '[]', '{}') then
                raise exception 'nothing was written';
            end if;
            raise exception using errcode = 'CMFY2';
        exception when sqlstate 'CMFY2' then null;
        end;

        v_step := 'retry';
        begin
            if not comfy_fail_task(v_task, v_token, 'trial', true, 2147483647, 60, null, '{}') then
                raise exception 'nothing was written';
            end if;
            raise exception using errcode = 'CMFY2';
        exception when sqlstate 'CMFY2' then null;
        end;

        v_step := 'failure';
        if not comfy_fail_task(v_task, v_token, 'trial', false, 1, 0, '[]', '{}') then
            raise exception 'nothing was written';
        end if;
        set constraints all immediate;
        raise exception using errcode = 'CMFY1';
    exception
        when sqlstate 'CMFY1' then null;
        when others then
            raise exception 'the tables do not take the % of a worker: %', v_step, sqlerrm using errcode = sqlstate;
    end;
end
$comfy$;
