// Makes and changes elements. Text only ever becomes a text node: nothing that comes from a file or a peer is markup.

export type Child = Node | string | null | undefined | false;
type Listener = (event: Event) => void;
export type Props = Record<string, string | number | boolean | undefined | Listener>;

/** Makes an element; a prop that is a function listens to the event of its name, `false` and `undefined` are left out. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== undefined && value !== false) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child): child is Node | string => child instanceof Node || (typeof child === "string" && child !== "")));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Makes an SVG element. */
export function svg(tag: string, props: Record<string, string | number>, ...children: Node[]): SVGElement {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** Makes the content of `element` look like `content`, changing only what differs: focus and selection stay. */
export function fill(element: Element, content: Child): void {
  const text = content instanceof Node ? null : content || "";
  if (text === null) {
    if (element.childNodes.length !== 1) element.replaceChildren(content as Node);
    else patch(element.firstChild as ChildNode, content as Node);
  } else if (element.textContent !== text || element.firstElementChild !== null) {
    element.textContent = text;
  }
}

function patch(now: ChildNode, next: Node): void {
  if (now.isEqualNode(next)) return;
  if (now instanceof Element && next instanceof Element && now.tagName === next.tagName) {
    // What an element says of itself, such as the answer to a click, is not the state's to change.
    if (now.hasAttribute("data-own")) return;
    for (const { name } of [...now.attributes]) if (!next.hasAttribute(name)) now.removeAttribute(name);
    for (const { name, value } of next.attributes) if (now.getAttribute(name) !== value) now.setAttribute(name, value);
    const [old, fresh] = [[...now.childNodes], [...next.childNodes]];
    fresh.forEach((child, at) => {
      const before = old[at];
      if (before) patch(before, child);
      else now.append(child);
    });
    old.slice(fresh.length).forEach((child) => child.remove());
  } else if (now.nodeType === Node.TEXT_NODE && next.nodeType === Node.TEXT_NODE) {
    now.nodeValue = next.nodeValue;
  } else {
    now.replaceWith(next);
  }
}
