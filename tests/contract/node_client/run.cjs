// Usage: node run.cjs host:port workflow-as-json. Prints what the library saw, as JSON.
const { Client } = require("@stable-canvas/comfyui-client");
const WebSocket = require("ws");

async function main(apiHost, workflow) {
  const client = new Client({ api_host: apiHost, WebSocket, fetch });
  await client.connect();
  const stats = await client.getSystemStats();
  const defs = await client.getNodeDefs();
  const result = await client.enqueue(workflow);
  const polled = await client.enqueue_polling(workflow);
  const history = await client.getHistory(5);
  client.close();
  return {
    version: stats.system.comfyui_version,
    nodes: Object.keys(defs).length,
    images: result.images,
    polled: polled.images,
    history: history.History.length,
  };
}

main(process.argv[2], JSON.parse(process.argv[3])).then(
  (seen) => {
    console.log(JSON.stringify(seen));
    process.exit(0);
  },
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
