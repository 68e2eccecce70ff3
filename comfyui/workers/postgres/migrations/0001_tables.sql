-- The tasks to run and the workers that run them. Safe to run again, and beside tables that exist already: those keep
-- their columns and get the ones that they lack.
--
-- Every name in double quotes is a setting (TASKS_TABLE, WORKERS_TABLE, TASK_COLUMNS), and so is every status in single
-- quotes (TASK_STATUSES, WORKER_STATUSES, TASK_TYPES). As it stands this file is valid with the defaults;
-- `python -m comfyui.workers.postgres_worker --sql` prints it with yours.

do $comfy$
begin
    perform 1 from "tasks" limit 0;
exception when undefined_table then
    create table "tasks" ("id" "uuid" primary key default gen_random_uuid()::"uuid");
    -- On Supabase a table without row level security belongs to everyone who has the public key.
    if exists (select from pg_roles where rolname = 'service_role') then
        alter table "tasks" enable row level security;
    end if;
end
$comfy$;

alter table "tasks"
    add column if not exists "task_type" text not null default 'comfy',
    add column if not exists "status" text not null default 'queued',
    add column if not exists "params" jsonb not null default '{}',
    -- A task with a higher number is taken before the others.
    add column if not exists "priority" integer not null default 0,
    add column if not exists "worker_id" text,
    add column if not exists "attempts" integer not null default 0,
    add column if not exists "progress" real,
    add column if not exists "progress_note" text,
    add column if not exists "output_url" text,
    add column if not exists "outputs" jsonb,
    -- How it ended, in the members that the workers of all platforms have.
    add column if not exists "result" jsonb,
    add column if not exists "error" text,
    add column if not exists "created_at" timestamptz not null default now(),
    add column if not exists "started_at" timestamptz,
    add column if not exists "finished_at" timestamptz,
    -- Whoever holds the token may write; it is new for every claim.
    add column if not exists lease_token uuid,
    add column if not exists lease_expires_at timestamptz,
    -- A queued task waits until then.
    add column if not exists run_after timestamptz,
    -- Counts how often the task was queued anew after its end, so that it renders anew and is not answered from before.
    add column if not exists runs integer not null default 0;

do $comfy$
begin
    perform 1 from "workers" limit 0;
exception when undefined_table then
    create table "workers" (id text primary key);
    if exists (select from pg_roles where rolname = 'service_role') then
        alter table "workers" enable row level security;
    end if;
end
$comfy$;

alter table "workers"
    add column if not exists status text,
    add column if not exists current_task_id text,
    add column if not exists last_heartbeat timestamptz,
    add column if not exists created_at timestamptz default now(),
    -- A row of one of our workers that has no newer sign of life by then belongs to a worker that was killed.
    add column if not exists alive_until timestamptz;

-- Version 1 of these functions wrote this status.
update "workers" set status = 'waiting' where status::text = 'waiting for ComfyUI';

-- Made anew, since the names of statuses may be others now; they hold few rows.
drop index if exists comfy_tasks_queued;
create index comfy_tasks_queued on "tasks" (coalesce("priority", 0) desc, "created_at" nulls first)
    where "status" = 'queued';
drop index if exists comfy_tasks_leased;
create index comfy_tasks_leased on "tasks" (lease_expires_at) where "status" = 'in_progress';
create unique index if not exists comfy_tasks_token on "tasks" (lease_token) where lease_token is not null;
