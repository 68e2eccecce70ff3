// Calls the gateway as users of Comfy-Org's SDK for Node do; prints one line of JSON for each case.
// Usage: node comfy_v2.mjs KEY, with COMFY_BASE_URL set; an empty KEY means no key.
import {
  Comfy, IdempotencyKeyReuse, InvalidWorkflow, JobFailed, MissingAsset, NotFound, Unauthorized, WorkflowFormatUi,
} from "@comfyorg/sdk";

const [key] = process.argv.slice(2);
const client = key ? new Comfy({ apiKey: key }) : new Comfy();
const say = (name, found) => console.log(JSON.stringify({ name, found }));

// A color that no server has in its cache.
const color = () => Math.floor(Math.random() * 0xffffff);
const picture = (color, sink = { class_type: "SaveImage", inputs: { images: ["2", 0], filename_prefix: "node" } }) => ({
  1: { class_type: "EmptyImage", inputs: { width: 16, height: 12, batch_size: 1, color } },
  2: { class_type: "ImageInvert", inputs: { image: ["1", 0] } },
  3: sink,
});
// Work without a model, in many short nodes, because an interruption takes effect between nodes.
const slow = (count) => {
  const nodes = picture(color(), { class_type: "SaveImage", inputs: { images: [String(9 + count), 0], filename_prefix: "slow" } });
  Object.assign(nodes[1].inputs, { width: 256, height: 256 });
  for (let index = 0; index < count; index += 1) {
    const image = [index === 0 ? "2" : String(9 + index), 0];
    nodes[10 + index] = { class_type: "ImageBlur", inputs: { image, blur_radius: 31, sigma: 9.0 } };
  }
  return nodes;
};
const graph = (nodes) => client.workflows.fromJson(nodes);
async function refused(kind, work) {
  try {
    await work();
    return "taken";
  } catch (error) {
    return error instanceof kind ? { code: error.code, status: error.httpStatus, details: error.details } : String(error);
  }
}

const job = await client.run(graph(picture(color())));
const bytes = await job.outputs[0].toBytes();
const part = await job.outputs[0].toBytes({ range: [0, 3] });
const link = await job.outputs[0].getDownloadUrl();
say("run", {
  status: job.status,
  outputs: job.outputs.map((output) => [output.nodeId, output.type, output.contentType]),
  size: bytes.length === job.outputs[0].sizeBytes,
  png: [...part],
  link: link.url.endsWith("/content"),
  workflow: (await job.getWorkflow()).workflow["1"].class_type,
  again: (await client.jobs.get(job.id)).status,
});

const followed = await client.submit(graph(slow(10)));
const told = [];
for await (const event of followed.events()) told.push(event);
const values = told.filter((event) => event.kind === "progress").map((event) => event.value);
say("events", {
  last: [told.at(-1).kind, told.at(-1).status],
  outputs: told.filter((event) => event.kind === "outputReady").map((event) => event.output.nodeId),
  progress: values.length > 1 && values.every((value, index) => index === 0 || value >= values[index - 1]),
  seen: [...new Set(told.filter((event) => event.kind === "statusChange").map((event) => event.status))].at(-1),
});

const running = await client.submit(graph(slow(150)));
while (running.status === "queued") await running.refresh();
await running.cancel();
await running.wait(30_000);
say("cancel", running.status);

const made = client.assets.fromBytes(bytes, { filename: "made.png", contentType: "image/png" });
await made.commit();
const own = new Uint8Array([...bytes, ...crypto.getRandomValues(new Uint8Array(8))]);
const input = client.assets.fromBytes(own, { filename: "shown.png", contentType: "image/png" });
await input.commit();
const known = client.assets.fromBytes(own, { filename: "other.png", contentType: "image/png" });
await known.commit();
const loading = (image) => ({
  1: { class_type: "LoadImage", inputs: { image } },
  2: { class_type: "SaveImage", inputs: { images: ["1", 0], filename_prefix: "loaded" } },
});
const loaded = await client.run(graph(loading(input)));
await known.delete();
say("assets", {
  created: [made.createdNew, input.createdNew, known.createdNew],
  loaded: loaded.status,
  deleted: await refused(NotFound, () => client.assets.get(known.id)),
});

const noPicture = client.assets.fromBytes(new TextEncoder().encode("no picture"), { filename: "no.png", contentType: "image/png" });
try {
  await (await client.submit(graph(loading(noPicture)))).result();
} catch (error) {
  say("failed", error instanceof JobFailed ? [error.error.code, error.error.node_id, error.error.class_type] : String(error));
}

const save = { nodes: [], links: [], version: 0.4 };
await client.submit(graph(picture(color())), { idempotencyKey: "once" });
const twice = await refused(IdempotencyKeyReuse, () => client.submit(graph(picture(color())), { idempotencyKey: "once" }));
const unknown = { __type: "core/ASSET", info: { id: "zzz" } };
say("refused", {
  workflow: (await refused(InvalidWorkflow, () => client.submit(graph({ 1: { class_type: "Nope", inputs: {} } })))).status,
  ui: (await refused(WorkflowFormatUi, () => client.submit(graph(save)))).code,
  twice: twice.code,
  asset: (await refused(MissingAsset, () => client.submit(graph(loading(unknown))))).details,
  job: (await refused(NotFound, () => client.jobs.get("00000000-0000-4000-8000-000000000000"))).code,
  key: key ? (await refused(Unauthorized, () => new Comfy({ apiKey: "wrong" }).jobs.get(job.id))).status : 401,
});
