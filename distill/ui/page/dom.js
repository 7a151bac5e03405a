// Elements, numbers and requests. Text from files reaches the page as text nodes alone.

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const el = (name, attributes = {}, ...children) => build(document.createElement(name), attributes, children);
export const svg = (name, attributes = {}, ...children) =>
  build(document.createElementNS(SVG, name), attributes, children);

export const number = (value) => (typeof value === "number" ? value.toLocaleString("en") : "–");
/** Two decimals of whole cents and of sums from 1, else four, and at least two digits, as on the terminal. */
export function usd(value) {
  const whole = Math.abs(value) >= 1 || Math.abs(value - Math.round(value * 100) / 100) < 1e-12;
  const decimals = whole ? 2 : Math.max(4, 1 - Math.floor(Math.log10(Math.abs(value))));
  return `USD ${value.toFixed(Math.min(decimals, 20))}`;
}

export const bytes = (value) =>
  value < 1e3 ? `${value} B` : value < 1e6 ? `${Math.round(value / 1e3)} kB` : `${(value / 1e6).toFixed(1)} MB`;

export function duration(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
  return minutes < 2880 ? `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min` : `${Math.round(minutes / 1440)} days`;
}

export function ago(time) {
  const seconds = Math.max(0, Date.now() / 1000 - time);
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h ago` : `${Math.round(seconds / 86400)} days ago`;
}

export const address = (parts, query = {}) => {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const path = `#/${parts.map(encodeURIComponent).join("/")}`;
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
};

export const text = (content, kind = "") => el("div", { class: `text ${kind}`, dir: "auto" }, content);
export const pill = (status) => el("span", { class: `pill ${status}` }, status);
export const badge = (content, kind = "") => el("span", { class: `badge ${kind}` }, el("bdi", {}, content));

const trouble = document.getElementById("trouble");

export function complain(line) {
  trouble.textContent = line;
  trouble.hidden = !line;
}

async function answerOf(response) {
  if (response.ok) return response;
  const body = await response.text();
  let line = body;
  try {
    line = JSON.parse(body).error.message;
  } catch {
    // plain text
  }
  throw Object.assign(new Error(line), { status: response.status });
}

export async function get(path, query = {}, options = {}) {
  const response = await fetch(`${path}?${new URLSearchParams(query)}`, options);
  if (response.status === 304) return { mark: options.headers["If-None-Match"], value: null };
  await answerOf(response);
  return { mark: response.headers.get("ETag"), value: await response.json() };
}

export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return answerOf(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

// Asks again every `every` milliseconds while the page is seen, and calls `show` with what has changed.
export function poll(path, query, every, show) {
  let [timer, mark, stopped] = [0, null, false];
  const look = async () => {
    try {
      const reply = await get(path, query, mark ? { headers: { "If-None-Match": mark } } : {});
      if (stopped) return;
      complain("");
      mark = reply.mark;
      show(reply.value);
    } catch (error) {
      if (stopped) return;
      complain(error.status ? error.message : "distill ui does not answer; start it again in the terminal");
    }
    timer = setTimeout(look, every);
  };
  const seen = () => {
    clearTimeout(timer);
    if (!document.hidden) look();
  };
  document.addEventListener("visibilitychange", seen);
  look();
  return () => {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", seen);
  };
}

// Puts nodes in place of a container's own only where their data has changed, so that a selection survives.
export function renderer() {
  const last = new Map();
  return (container, data, draw) => {
    const now = JSON.stringify(data);
    if (last.get(container) === now) return;
    last.set(container, now);
    container.replaceChildren(...[draw(data)].flat(Infinity).filter(Boolean));
  };
}
