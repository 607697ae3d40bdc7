/** The client of the Keyturn gateway: read, list, upload, delete and link encrypted files. */
export { Keyturn, type KeyturnOptions, type RequestOptions } from "./client.ts";
export type { DeleteManyReceipt, RejectedKey } from "./delete_many.ts";
export { type GetOptions, OpenObject } from "./download.ts";
export * from "./errors.ts";
export type { GenerationKeys, ProjectKeys, WrappedSecret } from "./keys.ts";
export type {
  CiphertextLink,
  CiphertextLinkOptions,
  Link,
  LinkOptions,
  UploadLink,
  UploadLinkOptions,
} from "./links.ts";
export type { ListEntry, ListedObject, ListedPrefix, ListOptions } from "./list.ts";
export type { ObjectInfo } from "./object_info.ts";
export { type PutToOptions, putTo } from "./put_to.ts";
export type { ByteRange } from "./range.ts";
export type { RotationCounts, RotationProgress, RotationState, WatchOptions } from "./rotation.ts";
export type { TransportOptions } from "./transport.ts";
export type { Progress, PutOptions, PutReceipt, UploadBody } from "./upload.ts";
export type { DeleteReceipt, WaitOptions } from "./write.ts";
