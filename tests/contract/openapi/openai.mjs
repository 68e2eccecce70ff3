// Calls the gateway as users of OpenAI's package for Node do; prints one line of JSON for each case.
// Usage: node openai.mjs URL KEY
import OpenAI, { toFile } from "openai";

const [url, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key || "none" });
const say = (name, found) => console.log(JSON.stringify({ name, found }));
const head = (data) => [...Buffer.from(data.b64_json, "base64").subarray(0, 4)];
async function refused(work) {
  try {
    await work();
    return "taken";
  } catch (error) {
    return [error.status, error.code, error.param];
  }
}

const made = await client.images.generate({ model: "portrait", prompt: "a cat", size: "72x40" });
say("generate", [made.data.length, head(made.data[0]), made.size, made.output_format]);

const linked = await client.images.generate({ model: "portrait", prompt: "a", response_format: "url" });
const picture = await fetch(linked.data[0].url);
say("url", [picture.status, picture.headers.get("content-type"), linked.data[0].b64_json ?? null]);

const photo = await toFile(Buffer.from(made.data[0].b64_json, "base64"), "photo.png", { type: "image/png" });
const edited = await client.images.edit({ model: "retouch", image: [photo, photo], mask: photo, prompt: "bluer" });
say("edit", edited.data.map(head));

const events = await client.images.generate({ model: "portrait", prompt: "a", stream: true, partial_images: 1 });
const told = [];
for await (const event of events) told.push(event.type);
say("stream", told.at(-1));

say("models", (await client.models.list()).data.map((model) => model.id));
say("refused", [
  await refused(() => client.images.generate({ model: "nope", prompt: "a" })),
  await refused(() => client.images.generate({ model: "portrait", prompt: "a", size: "big" })),
  await refused(() => new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong" }).images.generate({ model: "portrait", prompt: "a" })),
]);
