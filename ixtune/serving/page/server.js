// Requests to this server, and its errors in plain words. URLs are relative, so the page works under a proxy's path.

const KEY = "ixtune.key";

let key = sessionStorage.getItem(KEY) ?? "";

export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const hasKey = () => key !== "";

export function useKey(given) {
  key = given.trim();
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export async function models() {
  return (await (await send("v1/models")).json()).data;
}

export async function layout(body, signal) {
  return (await send("v1/layout", body, signal)).json();
}

// Yield what each server-sent event holds, up to [DONE].
export async function* stream(body, signal) {
  const response = await send("v1/chat/completions", body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Problem("The server closed the stream before the answer ended. Is it still running?");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        const data = line.slice("data: ".length);
        if (data === "[DONE]") return;
        const content = JSON.parse(data);
        if (content.error) throw new Problem(sentence(content.error.message));
        yield content;
      }
    }
  } catch (error) {
    throw plain(error);
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function send(path, body, signal) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    const content = body ? JSON.stringify(body) : undefined;
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: content, signal, cache: "no-store" });
  } catch (error) {
    throw plain(error);
  }
  if (response.ok) return response;
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {
    message = `the server answered with status ${response.status}`;
  }
  throw new Problem(sentence(message), response.status);
}

function plain(error) {
  if (error.name === "AbortError" || error instanceof Problem) return error;
  return new Problem("The server does not respond. Is it running, and is the network up?");
}

function sentence(text) {
  const start = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(start) ? start : `${start}.`;
}
