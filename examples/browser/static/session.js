// Who is signed in, and the client with which the page asks for files.
import { Keyturn } from "/keyturn/index.js";

/** The client of the user's files. It has no API key: the backend adds that. */
export let files;

/** Return who is signed in, or null. */
export async function currentUser() {
  return client(await fetch("/session"));
}

/** Sign in. Throws an Error with the reason if that is refused. */
export async function signIn(name, password) {
  const response = await fetch("/session", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ name, password }),
  });
  if (response.status === 401) throw new Error((await response.json()).detail);
  return client(response);
}

/** Sign out. */
export async function signOut() {
  await fetch("/session", { method: "DELETE" });
}

async function client(response) {
  if (!response.ok) throw new Error("The server returned an error. Try again later.");
  const user = await response.json();
  if (user)
    files = new Keyturn({ url: new URL("/files", location.href).href, project: user.project });
  return user;
}
