// Check the package as it would be published: publint and attw, on the packed tarball.
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
const folder = mkdtempSync(join(tmpdir(), "keyturn-package-"));
const run = (command, ...args) => execFileSync(command, args, { encoding: "utf8" });
const bin = (name) => join("node_modules", ".bin", name);
try {
  const [packed] = JSON.parse(run("npm", "pack", "--json", "--pack-destination", folder));
  const tarball = join(folder, packed.filename);
  const own = /^(dist\/.*|README\.md|LICENSE|package\.json)$/;
  const foreign = packed.files.map((file) => file.path).filter((path) => !own.test(path));
  if (foreign.length > 0) {
    throw new Error(`the package holds what is not part of it: ${foreign.join(", ")}`);
  }
  process.stdout.write(run(bin("publint"), "run", tarball, "--strict"));
  process.stdout.write(run(bin("attw"), tarball, "--no-emoji", "--no-color"));
} catch (error) {
  process.stderr.write(`${error.stdout ?? ""}${error.stderr ?? ""}${error.message}\n`);
  process.exitCode = 1;
} finally {
  rmSync(folder, { recursive: true });
}
