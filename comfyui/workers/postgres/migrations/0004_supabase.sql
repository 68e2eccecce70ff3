-- On Supabase every function and view can be used by everyone who has the public key, until that is taken away. Elsewhere nothing
-- happens. Safe to run again.

do $comfy$
declare
    v_function regprocedure;
begin
    if not exists (select from pg_roles where rolname = 'service_role') then
        return;
    end if;
    for v_function in
        select p.oid::regprocedure from pg_proc p
        where p.pronamespace = current_schema()::regnamespace
            and p.proname in ('comfy_claim_task', 'comfy_renew_lease', 'comfy_worker_seen', 'comfy_heartbeat',
                              'comfy_complete_task', 'comfy_fail_task', 'comfy_schema_version')
    loop
        execute format('revoke execute on function %s from public', v_function);
        if exists (select from pg_roles where rolname = 'anon') then
            execute format('revoke execute on function %s from anon', v_function);
        end if;
        if exists (select from pg_roles where rolname = 'authenticated') then
            execute format('revoke execute on function %s from authenticated', v_function);
        end if;
        execute format('grant execute on function %s to service_role', v_function);
    end loop;
    -- A view is read with its owner's rights: row level security of the tables would not protect it.
    revoke all on comfy_dead_tasks from public;
    if exists (select from pg_roles where rolname = 'anon') then
        revoke all on comfy_dead_tasks from anon;
    end if;
    if exists (select from pg_roles where rolname = 'authenticated') then
        revoke all on comfy_dead_tasks from authenticated;
    end if;
    grant select on comfy_dead_tasks to service_role;
end
$comfy$;

notify pgrst, 'reload schema';
