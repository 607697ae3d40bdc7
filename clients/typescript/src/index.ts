/** The client of the Keyturn gateway. */
export * from "./errors.ts";
