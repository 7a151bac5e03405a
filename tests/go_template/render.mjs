// Renders [{template, values}, …] from standard input with Go's text/template; writes the texts as a JSON list.
import { readFileSync } from "node:fs";
import { parse } from "@evertdespiegeleer/go-template";

const rendered = [];
for (const { template, values } of JSON.parse(readFileSync(0, "utf8"))) {
  rendered.push(await parse(template, values));
}
process.stdout.write(JSON.stringify(rendered), () => process.exit(0));
