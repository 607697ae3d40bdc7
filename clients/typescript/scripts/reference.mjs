// Write docs/reference/typescript-api.md, the reference of both entries, from the types.
//
// With --check, compare instead and exit with 1 if the committed file is out of date.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Application } from "typedoc";

const root = fileURLToPath(new URL("..", import.meta.url));
const target = new URL("../../../docs/reference/typescript-api.md", import.meta.url);
const header = `# TypeScript API

The package \`keyturn\` for Node.js, Deno, Bun, edge workers and browsers: what each of its two entries exports. How to use it is in its [README](https://github.com/keyturn/keyturn/tree/main/clients/typescript).

*Generated from the types by \`make typescript ARGS=--write\`.*
`;

/** Sections that repeat what the signature or another class says. */
const REPEATED =
  /^#+ (Parameters|Returns|Overrides|Inherited from|Implementation of|Extends|Extended by|Implements)$/;

/** Whether a section says what this class of errors adds to the one that it extends. */
function isAddedByError(section) {
  const rows = section.split("\n").filter((line) => line.startsWith("|"));
  return !/^#+ Constructors?\n/.test(section) && rows.length !== 2;
}

function condensed(markdown) {
  let inError = false;
  const kept = [];
  for (const section of markdown.split(/^(?=#)/m)) {
    const [heading] = section.split("\n");
    const [, name] = /^### (.*)$/.exec(heading) ?? [];
    inError = name === undefined ? inError && !/^##? /.test(heading) : /Error$/.test(name);
    // Rows of the table of properties that another class explains, and the name that each class has.
    const own = inError
      ? section.replace(/^\| <a id="[^"]*"><\/a> (`name` |.*\]\(#property-).*\n?/gm, "")
      : section;
    if (!REPEATED.test(heading) && (!inError || isAddedByError(own))) {
      kept.push(own);
    }
  }
  return (
    kept
      .join("")
      .replace(/^\*\*\*$/gm, "")
      .replace(/^(#+) Constructor$/gm, "$1 new")
      // Headings that come twice were numbered before some were left out.
      .replace(/\]\(#([a-z]+)-\d+\)/g, "](#$1)")
      .replace(/\[([^\]]*)\]\(#property-[^)]*\)/g, "$1")
      .replace(/<a id="[^"]*"><\/a> /g, "")
      .replace(/\n{3,}/g, "\n\n")
      .trim()
  );
}

async function generate(entry, title) {
  const folder = mkdtempSync(join(tmpdir(), "keyturn-reference-"));
  try {
    const app = await Application.bootstrapWithPlugins({
      entryPoints: [join(root, entry)],
      tsconfig: join(root, "tsconfig.json"),
      plugin: ["typedoc-plugin-markdown"],
      router: "module",
      readme: "none",
      excludeInternal: true,
      excludePrivate: true,
      excludeExternals: true,
      disableSources: true,
      hidePageHeader: true,
      hideBreadcrumbs: true,
      hidePageTitle: true,
      useCodeBlocks: true,
      expandParameters: true,
      parametersFormat: "table",
      interfacePropertiesFormat: "table",
      classPropertiesFormat: "table",
      indexFormat: "table",
      // Every property is readonly.
      tableColumnSettings: { hideDefaults: true, hideModifiers: true },
      logLevel: "Warn",
      treatWarningsAsErrors: true,
      validation: { notExported: false },
      sort: ["source-order"],
    });
    const project = await app.convert();
    if (project === undefined) {
      throw new Error("typedoc cannot read the types");
    }
    await app.outputs.writeOutput({ name: "markdown", path: folder }, project);
    const text = condensed(readFileSync(join(folder, "README.md"), "utf8"));
    // One level down: the page has the title.
    return `## ${title}\n\n${text.replace(/^#/gm, "##")}\n`;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const parts = [
  await generate("src/index.ts", "keyturn"),
  await generate("src/open/index.ts", "keyturn/open"),
];
const generated = [header, ...parts].join("\n");
if (process.argv.includes("--check")) {
  if (readFileSync(target, "utf8") !== generated) {
    console.error("docs/reference/typescript-api.md is out of date: make typescript ARGS=--write");
    process.exitCode = 1;
  }
} else {
  writeFileSync(target, generated);
}
