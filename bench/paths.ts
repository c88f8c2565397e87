/** The path of a file URL, for programs that take no URL. */
export function fromFileUrl(url: URL): string {
  if (url.protocol !== "file:") {
    throw new TypeError(`Cannot build and start peers: ${url} is no file`);
  }
  return decodeURIComponent(url.pathname);
}
