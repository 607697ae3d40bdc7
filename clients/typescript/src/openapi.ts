// Generated from workers/keyturn_workers/gateway/openapi.json by `npm run generate`. Do not edit.

export interface paths {
    "/healthz": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        /** Whether the process is alive */
        get: operations["alive"];
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/metrics": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        /** Metrics for Prometheus */
        get: operations["metrics"];
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/readyz": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        /** Whether broker and storage respond */
        get: operations["ready"];
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/v1/projects/{project}/deletes": {
        parameters: {
            query?: never;
            header?: never;
            path: {
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        get?: never;
        put?: never;
        /**
         * Delete up to 1,000 objects
         * @description Each key has its own outcome. All of them are final after two leases (30 seconds by default), as one delete is: a shorter wait ends in 202. A key under which nothing is stored is refused with `not_found`, and the others are deleted; if there is nothing under any of them, the response is 404. The project's pending deletes are counted by key. A gateway that forbids deletes refuses each with `not_permitted`.
         */
        post: operations["deleteMany"];
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/v1/projects/{project}/keys": {
        parameters: {
            query?: never;
            header?: never;
            path: {
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        /**
         * Describe the keys that objects need
         * @description For readers that open objects by themselves and ask the customer's KMS with credentials of their own. The response has no key and no secret.
         */
        get: operations["getKeys"];
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/v1/projects/{project}/objects": {
        parameters: {
            query?: never;
            header?: never;
            path: {
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        /**
         * List objects, one page at a time
         * @description Entries are in the byte order of their keys, without deleted objects; where the storage lists by paths (SeaweedFS), in that order: `a/x` before `a-b`. To read all pages, pass `next` as `after` until it is null. A page may have fewer entries than `limit`, or none, although more follow: deleted objects are skipped. With a delimiter, each folder is one entry; it may hold only deleted objects.
         */
        get: operations["listObjects"];
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/v1/projects/{project}/objects/{key}": {
        parameters: {
            query?: never;
            header?: never;
            path: {
                /** @description The object's key: 1 to 900 bytes of UTF-8, with slashes as `/` or `%2F`; no control character, no empty, `.` or `..` segment */
                key: string;
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        /**
         * Read an object, or one range of it
         * @description Decrypts while it streams. If the body does not authenticate to its end, the connection is reset: rely on Content-Length. The caller's metadata is in X-Keyturn-Meta-* headers.
         */
        get: operations["getObject"];
        /**
         * Upload an object
         * @description The body is encrypted while it streams into staging; workers store it. A key is written once, and cannot be used again after a delete. X-Keyturn-Meta-* headers become the object's metadata: at most 1 KiB. By link there is no metadata, and one upload at a time.
         */
        put: operations["putObject"];
        post?: never;
        /**
         * Delete an object
         * @description The key cannot be used again. A delete is final after two leases (30 seconds by default): a shorter wait ends in 202. A key that was deleted before is deleted again. A gateway that forbids deletes refuses each with `not_permitted`.
         */
        delete: operations["deleteObject"];
        options?: never;
        /**
         * Read an object's headers
         * @description Decrypts the last chunk, which proves the length.
         */
        head: operations["headObject"];
        patch?: never;
        trace?: never;
    };
    "/v1/projects/{project}/objects/{key}/links": {
        parameters: {
            query?: never;
            header?: never;
            path: {
                /** @description The object's key: 1 to 900 bytes of UTF-8, with slashes as `/` or `%2F`; no control character, no empty, `.` or `..` segment */
                key: string;
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        get?: never;
        put?: never;
        /**
         * Make a link to an object
         * @description The link opens this one object without the API key, for GET and HEAD; an upload link takes one body for it, by PUT.
         */
        post: operations["createLink"];
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/v1/projects/{project}/rotations": {
        parameters: {
            query?: never;
            header?: never;
            path: {
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        get?: never;
        put?: never;
        /**
         * Rotate the project to a new API key
         * @description Authenticate with the current key. The rotation expects that key's generation. Once it is accepted, only the new key is accepted. `Prefer: wait=N` waits until the rotation is accepted or refused. A gateway can be configured to refuse rotations: then every request with the current key is refused with `not_permitted`.
         */
        post: operations["rotate"];
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/v1/projects/{project}/rotations/{rotation_id}": {
        parameters: {
            query?: never;
            header?: never;
            path: {
                /** @description The project's id */
                project: string;
                /** @description The rotation's id, from the response to its request */
                rotation_id: string;
            };
            cookie?: never;
        };
        /**
         * Read the state of a rotation
         * @description Authenticate with the current API key: the new one, once the rotation is accepted.
         */
        get: operations["getRotation"];
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
}
export type webhooks = Record<string, never>;
export interface components {
    schemas: {
        CiphertextLink: {
            /** Format: date-time */
            expires_at: string;
            /** @description The object's `enc-` metadata, as stored. With the API key, it opens the bytes */
            metadata: {
                [key: string]: string;
            };
            /** @description A secret: anyone who has it can read the object */
            url: string;
        };
        Counts: {
            clean: boolean;
            current: number;
            deleted: number;
            encrypted: number;
            failed: number;
            foreign: number;
            noncurrent_stale: number;
            objects: number;
            plaintext: number;
            rewrapped: number;
        };
        /** @description The customer secret that wraps of the generation need besides the API key; absent if they need none */
        CustomerKey: {
            /** @description What the KMS demands to decrypt it: the encryption context of AWS, or the `associated_data` of Vault */
            context: {
                [key: string]: string;
            } | string;
            /** @description The KMS key: the ARN of an AWS key, or the name of a transit key */
            key: string;
            secret_id: string;
            /** @description The name of the KMS in the operator's settings */
            store: string;
            /** @description The secret as the KMS encrypted it: base64 of the ciphertext of AWS, or the text of Vault */
            wrapped: string;
        };
        GenerationKeys: {
            customer_key?: components["schemas"]["CustomerKey"];
            dek_since: number;
            generation: number;
        };
        Keys: {
            /** @description No wrap below this is tried; 0 for none */
            dek_floor: number;
            /** @description Each generation that wraps may still be of, the oldest first; the last is the current one */
            generations: components["schemas"]["GenerationKeys"][];
        };
        Link: {
            /** Format: date-time */
            expires_at: string;
            /** @description A secret: anyone who has it can read the object or, with an upload link, store it */
            url: string;
        };
        ListedObject: {
            /**
             * Format: date-time
             * @description The storage's time of the last write, in UTC. A rotation moves it
             */
            changed_at: string;
            key: string;
            /** @description Bytes of the plaintext, computed from the stored length; null if no read would open the object. Only reading the object, or HEAD, proves it */
            size: number | null;
        };
        Listing: {
            /** @description Pass it as `after` for the next page; null on the last page */
            next: string | null;
            objects: components["schemas"]["ListedObject"][];
            /** @description Common prefixes; always empty without a delimiter */
            prefixes: string[];
        };
        /**
         * @description RFC 9457
         * @example {
         *       "title": "Conflict",
         *       "status": 409,
         *       "code": "already_exists",
         *       "detail": "reports/q3.pdf holds another object",
         *       "upload_id": "2f6c9a0e-5d3b-4c1a-9f5e-0b7d1c8a4e21"
         *     }
         */
        Problem: {
            /**
             * @description Keyturn's error code; absent if the HTTP status says it all
             * @enum {unknown}
             */
            code?: "already_enrolled" | "already_exists" | "archived_object" | "bad_seal" | "bad_signature" | "body_too_large" | "corrupt_object" | "customer_key_refused" | "customer_key_unavailable" | "deleted_key" | "foreign_object" | "generation_mismatch" | "hidden_wrap" | "kek_reused" | "keyring_rolled_back" | "kms_unavailable" | "lease_mismatch" | "locked_object" | "malformed_request" | "marks_unavailable" | "no_usable_wrap" | "not_found" | "not_permitted" | "project_erased" | "range_not_satisfiable" | "request_expired" | "source_changed" | "source_missing" | "source_unavailable" | "staged_body_missing" | "storage_unavailable" | "too_many_requests" | "unauthorized" | "unknown_algorithm" | "unknown_intake_key" | "unknown_master_key" | "unknown_project" | "unknown_source" | "unsupported_media_type" | "wraps_disagree";
            detail?: string;
            request_id?: string;
            rotation_id?: string;
            status: number;
            title: string;
            upload_id?: string;
        };
        Progress: {
            /** Format: date-time */
            all_rewrapped_at?: string;
            done: number;
            /** Format: date-time */
            first_rewrap_at?: string;
            /**
             * @description `waiting` for a worker or for the next round; `rewrapping` `done` of `total` objects; `proving` that `done` of `total` are as desired, not before `proof_possible_at`; `ended`
             * @enum {unknown}
             */
            phase: "waiting" | "rewrapping" | "proving" | "ended";
            /** Format: date-time */
            proof_possible_at?: string;
            /** @description Absent until all objects were listed */
            total?: number;
            /**
             * @description Why the project's customer key gives no secret, while the rotation waits for it
             * @enum {unknown}
             */
            waits_for_key?: "customer_key_refused" | "customer_key_unavailable";
        };
        /** @description A key that was not deleted */
        RejectedKey: {
            /** @description Why, as in a problem document */
            code: string;
            detail: string;
            key: string;
        };
    };
    responses: never;
    parameters: never;
    requestBodies: never;
    headers: never;
    pathItems: never;
}
export type $defs = Record<string, never>;
export interface operations {
    alive: {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        requestBody?: never;
        responses: {
            /** @description Alive */
            200: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/json": {
                        /** @constant */
                        status: "alive";
                    };
                };
            };
        };
    };
    metrics: {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        requestBody?: never;
        responses: {
            /** @description Metrics */
            200: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "text/plain": string;
                };
            };
        };
    };
    ready: {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        requestBody?: never;
        responses: {
            /** @description Ready */
            200: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/json": {
                        checks: {
                            [key: string]: boolean;
                        };
                        ready: boolean;
                        /** @description Whether uploads, deletes and rotations are accepted: it is ready, and knows the newest marks of keyrings */
                        writes: boolean;
                    };
                };
            };
            /** @description Not ready */
            503: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/json": {
                        checks: {
                            [key: string]: boolean;
                        };
                        ready: boolean;
                        /** @description Whether uploads, deletes and rotations are accepted: it is ready, and knows the newest marks of keyrings */
                        writes: boolean;
                    };
                };
            };
        };
    };
    deleteMany: {
        parameters: {
            query?: never;
            header?: {
                /** @description `wait=N`: respond once every key has its outcome, or after N seconds */
                Prefer?: string;
            };
            path: {
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        requestBody: {
            content: {
                "application/json": {
                    keys: string[];
                };
            };
        };
        responses: {
            /** @description Each key has its outcome */
            200: {
                headers: {
                    "Preference-Applied"?: string;
                    [name: string]: unknown;
                };
                content: {
                    "application/json": {
                        deleted: string[];
                        rejected: components["schemas"]["RejectedKey"][];
                        request_id: string;
                    };
                };
            };
            /** @description Published: the outcome of the keys that are not in `rejected` is not known yet */
            202: {
                headers: {
                    "Preference-Applied"?: string;
                    [name: string]: unknown;
                };
                content: {
                    "application/json": {
                        /** @description Keys under which nothing is stored (not_found) */
                        rejected: components["schemas"]["RejectedKey"][];
                        request_id: string;
                    };
                };
            };
            /** @description The request is malformed (bad_seal, malformed_request, staged_body_missing, unknown_intake_key, unknown_source) */
            400: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description No API key, not the project's current one, no such project, or an invalid link (unauthorized) */
            401: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Forbidden at this gateway, or not in its grant, or the project's customer key is refused (bad_signature, customer_key_refused, not_permitted, request_expired) */
            403: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description There is no such object, rotation or path (not_found, project_erased, source_missing, unknown_project) */
            404: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The request's body was sent too slowly */
            408: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The request conflicts with the current state (already_enrolled, already_exists, archived_object, deleted_key, generation_mismatch, kek_reused, locked_object, source_changed) */
            409: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The body or the object is too large (body_too_large) */
            413: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The project uses its share of the gateway, or has too many requests without an outcome: try again later (too_many_requests) */
            429: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Internal error */
            500: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The stored object cannot be opened: it was changed, or Keyturn did not write it (corrupt_object, no_usable_wrap, unknown_algorithm, wraps_disagree) */
            502: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Try again later: storage or broker unavailable, the broker at an alarm, or too many requests (customer_key_unavailable, foreign_object, hidden_wrap, keyring_rolled_back, kms_unavailable, lease_mismatch, marks_unavailable, source_unavailable, storage_unavailable, unknown_master_key) */
            503: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
        };
    };
    getKeys: {
        parameters: {
            query?: never;
            header?: never;
            path: {
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        requestBody?: never;
        responses: {
            /** @description The generations that objects may be of */
            200: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/json": components["schemas"]["Keys"];
                };
            };
            /** @description No API key, not the project's current one, no such project, or an invalid link (unauthorized) */
            401: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The project uses its share of the gateway, or has too many requests without an outcome: try again later (too_many_requests) */
            429: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Internal error */
            500: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The stored object cannot be opened: it was changed, or Keyturn did not write it (corrupt_object, no_usable_wrap, unknown_algorithm, wraps_disagree) */
            502: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Try again later: storage or broker unavailable, the broker at an alarm, or too many requests (customer_key_unavailable, foreign_object, hidden_wrap, keyring_rolled_back, kms_unavailable, lease_mismatch, marks_unavailable, source_unavailable, storage_unavailable, unknown_master_key) */
            503: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
        };
    };
    listObjects: {
        parameters: {
            query?: {
                /** @description Only entries that sort after this. After a common prefix, all keys below it are skipped */
                after?: string;
                /** @description `/`: instead of the keys that have a slash after the prefix, list their common prefixes, up to and including that slash */
                delimiter?: "" | "/";
                /** @description The most objects and prefixes together */
                limit?: number;
                /** @description Only keys that begin with this: at most 900 bytes of UTF-8 */
                prefix?: string;
            };
            header?: never;
            path: {
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        requestBody?: never;
        responses: {
            /** @description One page */
            200: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/json": components["schemas"]["Listing"];
                };
            };
            /** @description The request is malformed (bad_seal, malformed_request, staged_body_missing, unknown_intake_key, unknown_source) */
            400: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description No API key, not the project's current one, no such project, or an invalid link (unauthorized) */
            401: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The project uses its share of the gateway, or has too many requests without an outcome: try again later (too_many_requests) */
            429: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Internal error */
            500: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The stored object cannot be opened: it was changed, or Keyturn did not write it (corrupt_object, no_usable_wrap, unknown_algorithm, wraps_disagree) */
            502: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Try again later: storage or broker unavailable, the broker at an alarm, or too many requests (customer_key_unavailable, foreign_object, hidden_wrap, keyring_rolled_back, kms_unavailable, lease_mismatch, marks_unavailable, source_unavailable, storage_unavailable, unknown_master_key) */
            503: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
        };
    };
    getObject: {
        parameters: {
            query?: {
                /** @description With an API key: send the object as an attachment with this file name, of at most 255 bytes of UTF-8. Never a redirect */
                download?: string;
                /** @description Of a link: when it ends, in seconds since 1970 */
                expires?: number;
                /** @description Of a link: a browser may show the object instead of saving it */
                inline?: "1";
            };
            header?: {
                /** @description 412 if the object has another ETag */
                "If-Match"?: string;
                /** @description 304 if the object was not stored since */
                "If-Modified-Since"?: string;
                /** @description 304 if the object has this ETag */
                "If-None-Match"?: string;
                /** @description The ETag that the range is for; if it has changed, the whole object is sent */
                "If-Range"?: string;
                /** @description 412 if the object was stored since */
                "If-Unmodified-Since"?: string;
                /** @description One range of bytes: `bytes=0-99`, `bytes=100-`, `bytes=-100` */
                Range?: string;
            };
            path: {
                /** @description The object's key: 1 to 900 bytes of UTF-8, with slashes as `/` or `%2F`; no control character, no empty, `.` or `..` segment */
                key: string;
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        requestBody?: never;
        responses: {
            /** @description The object */
            200: {
                headers: {
                    "Accept-Ranges"?: "bytes";
                    /** @description As stored. By link or with `download`: `attachment` or `inline`, with a file name */
                    "Content-Disposition"?: string;
                    "Content-Length"?: number;
                    "Content-Security-Policy"?: "sandbox";
                    /** @description The commitment to the object's DEK, which no rotation changes. Plaintext objects have the storage's ETag */
                    ETag?: string;
                    "Last-Modified"?: string;
                    /** @description Only by link */
                    "Referrer-Policy"?: "no-referrer";
                    [name: string]: unknown;
                };
                content: {
                    "*/*": unknown;
                };
            };
            /** @description The range */
            206: {
                headers: {
                    "Accept-Ranges"?: "bytes";
                    /** @description As stored. By link or with `download`: `attachment` or `inline`, with a file name */
                    "Content-Disposition"?: string;
                    "Content-Length"?: number;
                    "Content-Range"?: string;
                    "Content-Security-Policy"?: "sandbox";
                    /** @description The commitment to the object's DEK, which no rotation changes. Plaintext objects have the storage's ETag */
                    ETag?: string;
                    "Last-Modified"?: string;
                    /** @description Only by link */
                    "Referrer-Policy"?: "no-referrer";
                    [name: string]: unknown;
                };
                content: {
                    "*/*": unknown;
                };
            };
            /** @description Not modified */
            304: {
                headers: {
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description Plaintext, if the project allows it: read it from the storage, at a URL that is valid for 60 seconds. Never by link or with `download` */
            307: {
                headers: {
                    Location?: string;
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description The request is malformed (bad_seal, malformed_request, staged_body_missing, unknown_intake_key, unknown_source) */
            400: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description No API key, not the project's current one, no such project, or an invalid link (unauthorized) */
            401: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Forbidden at this gateway, or not in its grant, or the project's customer key is refused (bad_signature, customer_key_refused, not_permitted, request_expired) */
            403: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description There is no such object, rotation or path (not_found, project_erased, source_missing, unknown_project) */
            404: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The request conflicts with the current state (already_enrolled, already_exists, archived_object, deleted_key, generation_mismatch, kek_reused, locked_object, source_changed) */
            409: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The object does not meet the conditions */
            412: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The body or the object is too large (body_too_large) */
            413: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The range lies outside the object (range_not_satisfiable) */
            416: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The project uses its share of the gateway, or has too many requests without an outcome: try again later (too_many_requests) */
            429: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Internal error */
            500: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The stored object cannot be opened: it was changed, or Keyturn did not write it (corrupt_object, no_usable_wrap, unknown_algorithm, wraps_disagree) */
            502: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Try again later: storage or broker unavailable, the broker at an alarm, or too many requests (customer_key_unavailable, foreign_object, hidden_wrap, keyring_rolled_back, kms_unavailable, lease_mismatch, marks_unavailable, source_unavailable, storage_unavailable, unknown_master_key) */
            503: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
        };
    };
    putObject: {
        parameters: {
            query?: {
                /** @description Of an upload link: the content type of the body, which the request states too, or states none */
                content_type?: string;
                /** @description Of an upload link: when it ends, in seconds since 1970 */
                expires?: number;
                /** @description Of an upload link: the largest body */
                max_bytes?: number;
            };
            header?: {
                /** @description `wait=N`: respond when it is stored or refused, or after N seconds */
                Prefer?: string;
            };
            path: {
                /** @description The object's key: 1 to 900 bytes of UTF-8, with slashes as `/` or `%2F`; no control character, no empty, `.` or `..` segment */
                key: string;
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        requestBody: {
            content: {
                "*/*": unknown;
            };
        };
        responses: {
            /** @description Stored */
            201: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/json": {
                        upload_id: string;
                    };
                };
            };
            /** @description Published */
            202: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/json": {
                        upload_id: string;
                    };
                };
            };
            /** @description The request is malformed (bad_seal, malformed_request, staged_body_missing, unknown_intake_key, unknown_source) */
            400: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description No API key, not the project's current one, no such project, or an invalid link (unauthorized) */
            401: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Forbidden at this gateway, or not in its grant, or the project's customer key is refused (bad_signature, customer_key_refused, not_permitted, request_expired) */
            403: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description There is no such object, rotation or path (not_found, project_erased, source_missing, unknown_project) */
            404: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The request's body was sent too slowly */
            408: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The request conflicts with the current state (already_enrolled, already_exists, archived_object, deleted_key, generation_mismatch, kek_reused, locked_object, source_changed) */
            409: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The object does not meet the conditions */
            412: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The body or the object is too large (body_too_large) */
            413: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The upload link allows another content type (unsupported_media_type) */
            415: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The project uses its share of the gateway, or has too many requests without an outcome: try again later (too_many_requests) */
            429: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Internal error */
            500: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The stored object cannot be opened: it was changed, or Keyturn did not write it (corrupt_object, no_usable_wrap, unknown_algorithm, wraps_disagree) */
            502: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Try again later: storage or broker unavailable, the broker at an alarm, or too many requests (customer_key_unavailable, foreign_object, hidden_wrap, keyring_rolled_back, kms_unavailable, lease_mismatch, marks_unavailable, source_unavailable, storage_unavailable, unknown_master_key) */
            503: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
        };
    };
    deleteObject: {
        parameters: {
            query?: never;
            header?: {
                /** @description 412 if the object has another ETag, or was deleted */
                "If-Match"?: string;
                /** @description `wait=N`: respond once the delete is final or refused, or after N seconds */
                Prefer?: string;
            };
            path: {
                /** @description The object's key: 1 to 900 bytes of UTF-8, with slashes as `/` or `%2F`; no control character, no empty, `.` or `..` segment */
                key: string;
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        requestBody?: never;
        responses: {
            /** @description Published */
            202: {
                headers: {
                    "Preference-Applied"?: string;
                    [name: string]: unknown;
                };
                content: {
                    "application/json": {
                        request_id: string;
                    };
                };
            };
            /** @description Deleted */
            204: {
                headers: {
                    "Preference-Applied"?: string;
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description The request is malformed (bad_seal, malformed_request, staged_body_missing, unknown_intake_key, unknown_source) */
            400: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description No API key, not the project's current one, no such project, or an invalid link (unauthorized) */
            401: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Forbidden at this gateway, or not in its grant, or the project's customer key is refused (bad_signature, customer_key_refused, not_permitted, request_expired) */
            403: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description There is no such object, rotation or path (not_found, project_erased, source_missing, unknown_project) */
            404: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The request conflicts with the current state (already_enrolled, already_exists, archived_object, deleted_key, generation_mismatch, kek_reused, locked_object, source_changed) */
            409: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The object does not meet the conditions */
            412: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The project uses its share of the gateway, or has too many requests without an outcome: try again later (too_many_requests) */
            429: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Internal error */
            500: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The stored object cannot be opened: it was changed, or Keyturn did not write it (corrupt_object, no_usable_wrap, unknown_algorithm, wraps_disagree) */
            502: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Try again later: storage or broker unavailable, the broker at an alarm, or too many requests (customer_key_unavailable, foreign_object, hidden_wrap, keyring_rolled_back, kms_unavailable, lease_mismatch, marks_unavailable, source_unavailable, storage_unavailable, unknown_master_key) */
            503: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
        };
    };
    headObject: {
        parameters: {
            query?: {
                /** @description With an API key: send the object as an attachment with this file name, of at most 255 bytes of UTF-8. Never a redirect */
                download?: string;
                /** @description Of a link: when it ends, in seconds since 1970 */
                expires?: number;
                /** @description Of a link: a browser may show the object instead of saving it */
                inline?: "1";
            };
            header?: {
                /** @description 412 if the object has another ETag */
                "If-Match"?: string;
                /** @description 304 if the object was not stored since */
                "If-Modified-Since"?: string;
                /** @description 304 if the object has this ETag */
                "If-None-Match"?: string;
                /** @description 412 if the object was stored since */
                "If-Unmodified-Since"?: string;
            };
            path: {
                /** @description The object's key: 1 to 900 bytes of UTF-8, with slashes as `/` or `%2F`; no control character, no empty, `.` or `..` segment */
                key: string;
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        requestBody?: never;
        responses: {
            /** @description As GET, without the body */
            200: {
                headers: {
                    "Accept-Ranges"?: "bytes";
                    /** @description As stored. By link or with `download`: `attachment` or `inline`, with a file name */
                    "Content-Disposition"?: string;
                    "Content-Length"?: number;
                    "Content-Security-Policy"?: "sandbox";
                    /** @description The commitment to the object's DEK, which no rotation changes. Plaintext objects have the storage's ETag */
                    ETag?: string;
                    "Last-Modified"?: string;
                    /** @description Only by link */
                    "Referrer-Policy"?: "no-referrer";
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description Not modified */
            304: {
                headers: {
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description The request is malformed */
            400: {
                headers: {
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description No API key, not the project's current one, no such project, or an invalid link */
            401: {
                headers: {
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description Forbidden at this gateway, or not in its grant, or the project's customer key is refused */
            403: {
                headers: {
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description There is no such object, rotation or path */
            404: {
                headers: {
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description The request conflicts with the current state */
            409: {
                headers: {
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description The object does not meet the conditions */
            412: {
                headers: {
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description The body or the object is too large */
            413: {
                headers: {
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description The project uses its share of the gateway, or has too many requests without an outcome: try again later */
            429: {
                headers: {
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description Internal error */
            500: {
                headers: {
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description The stored object cannot be opened: it was changed, or Keyturn did not write it */
            502: {
                headers: {
                    [name: string]: unknown;
                };
                content?: never;
            };
            /** @description Try again later: storage or broker unavailable, the broker at an alarm, or too many requests */
            503: {
                headers: {
                    [name: string]: unknown;
                };
                content?: never;
            };
        };
    };
    createLink: {
        parameters: {
            query?: never;
            header?: never;
            path: {
                /** @description The object's key: 1 to 900 bytes of UTF-8, with slashes as `/` or `%2F`; no control character, no empty, `.` or `..` segment */
                key: string;
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        requestBody?: {
            content: {
                "application/json": {
                    /**
                     * @description Of an upload link: the content type that the object gets; any by default
                     * @default null
                     */
                    content_type?: string | null;
                    /**
                     * @description How long the link is valid, in seconds. A link to the ciphertext is valid for at most 900, which is also its default
                     * @default 3600
                     */
                    expires_s?: number;
                    /**
                     * @description Whether a browser may show the object instead of saving it. Not for `ciphertext`
                     * @default false
                     */
                    inline?: boolean;
                    /**
                     * @description `object`: a URL of the gateway, which opens the object until it expires or the API key is rotated. The object need not exist yet. `ciphertext`: a presigned URL of the object's stored bytes. A rotation does not end it. Only for an object encrypted with Cobblestone-256
                     * @default object
                     * @enum {unknown}
                     */
                    kind?: "object" | "ciphertext";
                    /**
                     * @description Of an upload link, which needs it: the largest body, in bytes. At most the largest object of this gateway
                     * @default null
                     */
                    max_bytes?: number | null;
                    /**
                     * @description `PUT`: an upload link. It needs `max_bytes`, and takes no `inline` or `kind`
                     * @default GET
                     * @enum {unknown}
                     */
                    method?: "GET" | "PUT";
                };
            };
        };
        responses: {
            /** @description The link */
            201: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/json": components["schemas"]["CiphertextLink"] | components["schemas"]["Link"];
                };
            };
            /** @description The request is malformed (bad_seal, malformed_request, staged_body_missing, unknown_intake_key, unknown_source) */
            400: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description No API key, not the project's current one, no such project, or an invalid link (unauthorized) */
            401: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Forbidden at this gateway, or not in its grant, or the project's customer key is refused (bad_signature, customer_key_refused, not_permitted, request_expired) */
            403: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description There is no such object, rotation or path (not_found, project_erased, source_missing, unknown_project) */
            404: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The request's body was sent too slowly */
            408: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The request conflicts with the current state (already_enrolled, already_exists, archived_object, deleted_key, generation_mismatch, kek_reused, locked_object, source_changed) */
            409: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The body or the object is too large (body_too_large) */
            413: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The project uses its share of the gateway, or has too many requests without an outcome: try again later (too_many_requests) */
            429: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Internal error */
            500: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The stored object cannot be opened: it was changed, or Keyturn did not write it (corrupt_object, no_usable_wrap, unknown_algorithm, wraps_disagree) */
            502: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Try again later: storage or broker unavailable, the broker at an alarm, or too many requests (customer_key_unavailable, foreign_object, hidden_wrap, keyring_rolled_back, kms_unavailable, lease_mismatch, marks_unavailable, source_unavailable, storage_unavailable, unknown_master_key) */
            503: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
        };
    };
    rotate: {
        parameters: {
            query?: never;
            header?: {
                /** @description `wait=N` */
                Prefer?: string;
            };
            path: {
                /** @description The project's id */
                project: string;
            };
            cookie?: never;
        };
        requestBody: {
            content: {
                "application/json": {
                    /** @description The new API key. Save it before you send it */
                    api_key: string;
                };
            };
        };
        responses: {
            /** @description Published */
            202: {
                headers: {
                    Location?: string;
                    [name: string]: unknown;
                };
                content: {
                    "application/json": {
                        /** @description The rotation's id, with which its state can be read */
                        rotation_id: string;
                    };
                };
            };
            /** @description The request is malformed (bad_seal, malformed_request, staged_body_missing, unknown_intake_key, unknown_source) */
            400: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description No API key, not the project's current one, no such project, or an invalid link (unauthorized) */
            401: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Forbidden at this gateway, or not in its grant, or the project's customer key is refused (bad_signature, customer_key_refused, not_permitted, request_expired) */
            403: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description There is no such object, rotation or path (not_found, project_erased, source_missing, unknown_project) */
            404: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The request's body was sent too slowly */
            408: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The request conflicts with the current state (already_enrolled, already_exists, archived_object, deleted_key, generation_mismatch, kek_reused, locked_object, source_changed) */
            409: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The body or the object is too large (body_too_large) */
            413: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The project uses its share of the gateway, or has too many requests without an outcome: try again later (too_many_requests) */
            429: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Internal error */
            500: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The stored object cannot be opened: it was changed, or Keyturn did not write it (corrupt_object, no_usable_wrap, unknown_algorithm, wraps_disagree) */
            502: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Try again later: storage or broker unavailable, the broker at an alarm, or too many requests (customer_key_unavailable, foreign_object, hidden_wrap, keyring_rolled_back, kms_unavailable, lease_mismatch, marks_unavailable, source_unavailable, storage_unavailable, unknown_master_key) */
            503: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
        };
    };
    getRotation: {
        parameters: {
            query?: never;
            header?: never;
            path: {
                /** @description The project's id */
                project: string;
                /** @description The rotation's id, from the response to its request */
                rotation_id: string;
            };
            cookie?: never;
        };
        requestBody?: never;
        responses: {
            /** @description Its state */
            200: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/json": {
                        code?: string;
                        counts?: components["schemas"]["Counts"];
                        detail?: string;
                        generation?: number;
                        progress?: components["schemas"]["Progress"];
                        project: string;
                        rotation_id: string;
                        /**
                         * @description `accepted`: the new key is in effect, and there is no record of the sweep (yet, or any more). Only `completed` with `clean` means that no old wrap is left. `requested` and `rejected` are known only to the gateway that published the rotation
                         * @enum {unknown}
                         */
                        state: "requested" | "rejected" | "accepted" | "running" | "failed" | "completed";
                    };
                };
            };
            /** @description No API key, not the project's current one, no such project, or an invalid link (unauthorized) */
            401: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description There is no such object, rotation or path (not_found, project_erased, source_missing, unknown_project) */
            404: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The project uses its share of the gateway, or has too many requests without an outcome: try again later (too_many_requests) */
            429: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Internal error */
            500: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description The stored object cannot be opened: it was changed, or Keyturn did not write it (corrupt_object, no_usable_wrap, unknown_algorithm, wraps_disagree) */
            502: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
            /** @description Try again later: storage or broker unavailable, the broker at an alarm, or too many requests (customer_key_unavailable, foreign_object, hidden_wrap, keyring_rolled_back, kms_unavailable, lease_mismatch, marks_unavailable, source_unavailable, storage_unavailable, unknown_master_key) */
            503: {
                headers: {
                    [name: string]: unknown;
                };
                content: {
                    "application/problem+json": components["schemas"]["Problem"];
                };
            };
        };
    };
}
