/** `Keyturn`: access to one project through a gateway (SPEC 9). */

import type { DeleteManyReceipt } from "./delete_many.ts";
import { type GetOptions, type OpenObject, openObject, statObject } from "./download.ts";
import type { ProjectKeys } from "./keys.ts";
import type {
  CiphertextLink,
  CiphertextLinkOptions,
  Link,
  LinkOptions,
  UploadLink,
  UploadLinkOptions,
} from "./links.ts";
import type { ListEntry, ListOptions } from "./list.ts";
import {
  checkApiKey,
  checkObjectKey,
  checkProject,
  isHttpUrl,
  isUnencrypted,
  malformed,
} from "./names.ts";
import type { ObjectInfo } from "./object_info.ts";
import type { RotationState, WatchOptions } from "./rotation.ts";
import { type Connection, settingsOf, type TransportOptions } from "./transport.ts";
import type { PutOptions, PutReceipt, UploadBody } from "./upload.ts";
import type { DeleteReceipt, WaitOptions } from "./write.ts";

/** Options of a client. */
export interface KeyturnOptions extends TransportOptions {
  /** The gateway's address, such as `https://files.example.com`. */
  readonly url: string | URL;
  /** The project's id. */
  readonly project: string;
  /**
   * The project's current API key. It belongs on a server, never in a web page: there, leave it
   * out, and let `url` be your backend, which passes requests on and adds the API key.
   *
   * An `apiKey` that is present but not a string, such as an unset variable, is a `TypeError`.
   */
  readonly apiKey?: string | undefined;
  /** How often a failed read is retried; 3 by default. Writes are never retried. */
  readonly retries?: number | undefined;
  /** Do not warn when the API key goes over plain HTTP to another machine. */
  readonly allowUnencrypted?: boolean | undefined;
}

/** Options that every request has. */
export interface RequestOptions {
  readonly signal?: AbortSignal | undefined;
}

/** Access to one project through a gateway. Safe for concurrent use; holds no connection. */
export class Keyturn {
  // Private, so that nothing that prints a client prints the API key.
  readonly #connection: Connection;
  readonly #options: KeyturnOptions;

  /** Checks the options; connects when needed. */
  constructor(options: KeyturnOptions) {
    const { project, apiKey, allowUnencrypted } = options;
    const url = `${options.url}`;
    if (!isHttpUrl(url) || /[?#\\\s]/.test(url)) {
      throw malformed("the URL is https://host, without user or query");
    }
    if (apiKey && isUnencrypted(url) && !allowUnencrypted) {
      // biome-ignore lint/suspicious/noConsole: what a warning is in this language
      console.warn("keyturn: API key sent unencrypted, use https");
    }
    this.#options = options;
    this.#connection = {
      ...settingsOf(options),
      url: `${url.replace(/\/+$/, "")}/v1/projects/${checkProject(project)}`,
      apiKey: "apiKey" in options ? checkApiKey(apiKey) : undefined,
      retries: options.retries ?? 3,
    };
  }

  /** A client with another API key, such as the new one after a rotation. */
  withApiKey(apiKey: string): Keyturn {
    return new Keyturn({ ...this.#options, apiKey, allowUnencrypted: true });
  }

  /** Open an object, or a range of it, for reading. */
  async get(key: string, options: GetOptions = {}): Promise<OpenObject> {
    return openObject(this.#connection, this.#url(key), options);
  }

  /** An object's size and metadata, without its body. */
  async stat(key: string, options: RequestOptions = {}): Promise<ObjectInfo> {
    return statObject(this.#connection, this.#url(key), options.signal);
  }

  /** The project's objects in key order, requested in pages while they are read. */
  async *list(options: ListOptions = {}): AsyncGenerator<ListEntry, void, undefined> {
    yield* (await import("./list.ts")).listObjects(this.#connection, options);
  }

  /**
   * Upload one object, and resolve once it is stored. It is sent once; objects are written once.
   *
   * If the outcome is not known after `waitSeconds`, it rejects with an `UploadPendingError`. With
   * `wait: false`, it resolves once the upload is on its queue.
   */
  async put(key: string, body: UploadBody, options: PutOptions = {}): Promise<PutReceipt> {
    return (await import("./upload.ts")).putObject(this.#connection, this.#url(key), body, options);
  }

  /**
   * Delete one object. Its key cannot be used again.
   *
   * A delete is final after two leases (30 seconds by default). Without `waitSeconds`, it resolves
   * once the request is on its queue.
   */
  async delete(key: string, options: WaitOptions = {}): Promise<DeleteReceipt> {
    return (await import("./write.ts")).deleteObject(this.#connection, this.#url(key), options);
  }

  /**
   * Delete up to 1,000 objects, which takes no longer than one. Each key has its own outcome.
   *
   * With `waitSeconds`, it resolves once each key has its outcome, or when the wait ends. A refused
   * key does not keep the others from being deleted. If no key has an object, it rejects with
   * `NotFoundError`.
   */
  async deleteMany(keys: readonly string[], options: WaitOptions = {}): Promise<DeleteManyReceipt> {
    return (await import("./delete_many.ts")).deleteObjects(this.#connection, keys, options);
  }

  /** A URL that opens one object without the API key, until it expires or the key is rotated. */
  async link(key: string, options: LinkOptions = {}): Promise<Link> {
    return (await import("./links.ts")).makeLink(this.#connection, this.#url(key), options);
  }

  /**
   * A URL that takes one body for one object without the API key, until it expires or the key is
   * rotated. Give it to a page, which uploads with `putTo`.
   */
  async uploadLink(key: string, options: UploadLinkOptions): Promise<UploadLink> {
    return (await import("./links.ts")).makeUploadLink(this.#connection, this.#url(key), options);
  }

  /** A URL of an object's stored bytes, with the metadata that `keyturn/open` needs. */
  async ciphertextLink(key: string, options: CiphertextLinkOptions = {}): Promise<CiphertextLink> {
    return (await import("./links.ts")).makeCiphertextLink(
      this.#connection,
      this.#url(key),
      options,
    );
  }

  /**
   * What a reader needs that opens the project's objects by itself, with `keyturn/open`.
   *
   * If the project has a customer key, the reader decrypts each `wrapped` with credentials of its
   * own for the customer's KMS.
   */
  async keys(options: RequestOptions = {}): Promise<ProjectKeys> {
    return (await import("./keys.ts")).readKeys(this.#connection, options.signal);
  }

  /**
   * Request a rotation to a new API key; save it first. Returns the rotation's id.
   *
   * The current API key is valid until the rotation is accepted, and the new one from then on:
   * follow it by `watchRotation(id, { newApiKey })`, and use `withApiKey(newApiKey)` afterwards.
   */
  async rotate(newApiKey: string, options: WaitOptions = {}): Promise<string> {
    return (await import("./rotation.ts")).requestRotation(this.#connection, newApiKey, options);
  }

  /** The state of a rotation, for the current API key. */
  async rotation(rotationId: string, options: RequestOptions = {}): Promise<RotationState> {
    return (await import("./rotation.ts")).readRotation(
      this.#connection,
      rotationId,
      options.signal,
    );
  }

  /** Each new state of a rotation, up to the one that ends it: completed, failed or rejected. */
  async *watchRotation(
    rotationId: string,
    options: WatchOptions = {},
  ): AsyncGenerator<RotationState, void, undefined> {
    yield* (await import("./rotation.ts")).watchStates(this.#connection, rotationId, options);
  }

  #url(key: string): string {
    const path = checkObjectKey(key).split("/").map(encodeURIComponent).join("/");
    return `${this.#connection.url}/objects/${path}`;
  }
}
