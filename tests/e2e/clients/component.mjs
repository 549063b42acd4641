// The Vue component's calls, from a dev server's origin: every field of the settings form, the first candidate that was
// not chosen as `rejected`, the conversation as context, a ping on a timer.
const base = process.argv[2];
const origin = "http://localhost:5173";

const api = async (method, path, body) => {
  const headers = { Origin: origin };
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(base + path, { method, headers, body: body && JSON.stringify(body) });
  if (answer.headers.get("access-control-allow-origin") !== origin) throw new Error(`${path}: no CORS`);
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.detail);
  return content;
};

const preflight = await fetch(base + "/api/dataset/add", {
  method: "OPTIONS",
  headers: { Origin: origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type" },
});
if (!preflight.ok) throw new Error(`preflight: ${preflight.status}`);

const settings = {
  enable_thinking: true,
  show_thinking: true,
  mode: "multi",
  num_responses: 3,
  temperature: 0.85,
  top_p: 0.9,
  top_k: 50,
  repetition_penalty: 1.15,
  max_new_tokens: 64,
  system_prompt: "You are Li, a clerk in a second-hand bookshop.",
};
const loaded = await api("POST", "/api/model/load", settings);
if (JSON.stringify(loaded.data.config) !== JSON.stringify({ ...loaded.data.config, ...settings })) throw new Error("config");

const context = [];
for (const message of ["Hello!", "Which book do you like?"]) {
  const { responses } = await api("POST", "/api/generate", { message, context });
  const chosen = responses[1];
  const rejected = responses.find((candidate) => candidate.id !== chosen.id);
  await api("POST", "/api/dataset/add", {
    mode: "multi",
    human_input: message,
    chosen: chosen.content,
    chosen_thinking: chosen.thinking,
    rejected: rejected.content,
    context,
  });
  context.push({ role: "user", content: message }, { role: "assistant", content: chosen.content });
}
console.log((await api("GET", "/api/dataset/list?dataset=roleplay&limit=10")).data.total);
console.log((await api("GET", "/api/model/status")).data.model_loaded);

const socket = new WebSocket(base.replace("http", "ws") + "/ws/train/logs");
await new Promise((resolve) => (socket.onopen = resolve));
const timer = setInterval(() => socket.send("ping"), 250);
await api("POST", "/api/model/unload");
await api("POST", "/api/train/start");
while ((await api("GET", "/api/train/status")).data.running) await new Promise((resolve) => setTimeout(resolve, 500));
clearInterval(timer);
socket.close();
console.log((await api("GET", "/api/train/status")).data.last_run.state);
