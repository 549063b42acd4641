// The fetch page: plain fetch, and the log over a WebSocket.
const base = process.argv[2];

const post = async (path, body) => {
  const init = { method: "POST" };
  if (body !== undefined) {
    init.headers = { "Content-Type": "application/json" };
    init.body = JSON.stringify(body);
  }
  const answer = await fetch(base + path, init);
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
};

await post("/api/model/load", { num_responses: 2, max_new_tokens: 64 });
const { responses } = await post("/api/generate", { message: "Who are you?" });
await post("/api/dataset/add", {
  mode: "single",
  human_input: "Who are you?",
  chosen: responses[0].content,
  chosen_thinking: responses[0].thinking ?? null,
  rejected: responses[1].content,
});
console.log((await (await fetch(base + "/api/dataset/stats")).json()).message);
await post("/api/model/unload");

const socket = new WebSocket(base.replace("http", "ws") + "/ws/train/logs");
const seen = [];
const ended = new Promise((resolve, reject) => {
  socket.onerror = reject;
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    seen.push(message.type);
    const running = seen.includes("log");
    if (message.type === "status" && !message.running && running) resolve();
  };
});
await new Promise((resolve) => (socket.onopen = resolve));
socket.send("ping");
await post("/api/train/start");
await ended;
socket.close();
if (seen[0] !== "history" || seen[1] !== "status" || !seen.includes("heartbeat")) throw new Error(seen.join());
const status = await (await fetch(base + "/api/train/status")).json();
console.log(status.data.last_run.state);
