// Uses the types that openapi-typescript generates from the gateway's document. tests/contract/test_openapi_clients.py
// checks this file with tsc; a line under @ts-expect-error must be an error.
import type { components, operations, paths } from "./gateway";

type Schemas = components["schemas"];
type Sent<Name extends keyof operations> = operations[Name]["responses"];

const request: Schemas["PromptRequest"] = {
  prompt: { "1": { class_type: "EmptyImage", inputs: {} } },
  convert: { format: "webp", quality: 80, metadata: "strip" },
};
// @ts-expect-error: there is no such field
export const misspelt: Schemas["PromptRequest"] = { prompt: {}, retrun_image_base64: true };
// @ts-expect-error: there is no such format
export const unknownFormat: Schemas["ImageConversion"] = { format: "bmp" };

export const query: NonNullable<operations["prompt_sync"]["parameters"]["query"]> = { timeout: 30, node_id: "9" };
export const header: NonNullable<operations["prompt_sync"]["parameters"]["header"]> = { "Idempotency-Key": "order-1" };
export const body: paths["/prompt_sync"]["post"]["requestBody"]["content"]["application/json"] = request;

export const submitted: NonNullable<operations["prompt_sync"]["parameters"]["header"]> = { Prefer: "respond-async" };
export const narrowed: NonNullable<operations["list_jobs"]["parameters"]["query"]> = {
  status: "failed,lost", limit: 20, labels: { "label.order": "1234" },
};
// @ts-expect-error: labels are text
export const wrongLabel: Schemas["PromptRequest"] = { prompt: {}, labels: { order: 1234 } };

const flat: paths["/workflows/flat"]["post"]["requestBody"] = {
  content: { "application/json": { width: 9, seed: "random", $options: { labels: { order: "1234" } } } },
};
export const flatBody: Schemas["RunFlat"] = flat.content["application/json"];
// @ts-expect-error: there is no such parameter
export const misspeltParameter: Schemas["RunFlat"] = { widht: 9 };
// @ts-expect-error: it must be a number
export const wrongParameter: Schemas["RunFlat"] = { width: "wide" };
// @ts-expect-error: the picture is required
export const withoutPicture: Schemas["RunInverted"] = {};

export function ranAs(answer: Sent<"run_Flat">[200]["content"]["application/json"]): string {
  return `${answer.workflow?.name} ${answer.workflow?.version}: ${answer.images.map((file) => file.output)}`;
}

export function howFar(job: Sent<"attach">[202]["content"]["application/json"]): string {
  // @ts-expect-error: there is no such state
  if (job.status === "done") return "";
  return job.status === "running" ? `${job.progress?.overall ?? 0}` : `${job.position ?? "?"} before it`;
}

export function reasons(page: Sent<"list_jobs">[200]["content"]["application/json"]): string[] {
  return page.jobs.map((job) => `${job.prompt_id} ${job.labels["order"] ?? ""}: ${job.error?.detail ?? "-"}`);
}

export function filenames(answer: Sent<"prompt_sync">[200]["content"]["application/json"]): string[] {
  return answer.images.map((file) => `${file.node_id}: ${file.filename} ${file.size ?? ""}`);
}

export function reason(error: Sent<"prompt_sync">[429]["content"]["application/json"]): string {
  // @ts-expect-error: only FastAPI's own errors have this; ours have one text
  const [first] = error.detail[0].loc;
  return `${error.type}: ${error.detail} (${error.prompt_id ?? first})`;
}

export function problems(validation: Schemas["Validation"]): Schemas["ProblemEntry"][] {
  return validation.problems.filter((problem) => problem.severity === "error");
}

export type Events = Sent<"prompt_sync">[200]["content"]["text/event-stream"];
export type Bytes = Sent<"attach">[200]["content"]["image/*"];
export type Unhealthy = Sent<"health">[503]["content"]["application/json"];
