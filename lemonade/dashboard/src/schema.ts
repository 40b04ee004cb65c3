// The documentation that the JSON Schema of the configuration holds.

import type { Json } from "./api.ts";

export interface Schema {
  description?: string;
  default?: Json;
  const?: Json;
  enum?: Json[];
  $ref?: string;
  allOf?: Schema[];
  anyOf?: Schema[];
  oneOf?: Schema[];
  items?: Schema;
  properties?: Record<string, Schema>;
  additionalProperties?: Schema | boolean;
  definitions?: Record<string, Schema>;
}

/** Follows references until there is something to read. */
export function resolve(root: Schema, schema: Schema | undefined): Schema {
  let at = schema ?? {};
  for (let depth = 0; depth < 8; depth += 1) {
    const only = at.allOf?.length === 1 ? at.allOf[0] : undefined;
    const reference = at.$ref ?? only?.$ref;
    if (reference === undefined) return at;
    const { description, default: standard } = at;
    const target = root.definitions?.[reference.split("/").pop() ?? ""] ?? {};
    at = { ...target, ...(description === undefined ? {} : { description }), ...(standard === undefined ? {} : { default: standard }) };
  }
  return at;
}

/** The words that a key may take, with what each means. */
export function choices(root: Schema, schema: Schema): { word: string; means: string }[] {
  const parts = [...(schema.oneOf ?? []), ...(schema.anyOf ?? [])].map((part) => resolve(root, part));
  return parts.flatMap((part) => {
    if (part.oneOf || part.anyOf) return choices(root, part);
    const all = part.const === undefined ? (part.enum ?? []) : [part.const];
    return all.filter((word) => typeof word === "string").map((word) => ({ word: String(word), means: part.description ?? "" }));
  });
}
