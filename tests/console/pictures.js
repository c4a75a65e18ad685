({
  /** Show everything in a font (base64), and as a style sheet says. */
  async boxes(font, style) {
    const data = Uint8Array.from(atob(font), (c) => c.charCodeAt(0));
    document.fonts.add(await new FontFace("Boxes", data.buffer).load());
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(style);
    document.adoptedStyleSheets = [sheet];
    for (let frames = 0; frames < 2; frames += 1) await new Promise(requestAnimationFrame);
  },

  /** Which part of the squares of two pictures (PNG in base64) differs by more than `apart` in a colour's average. */
  async difference(pictures, side, apart) {
    const averages = async (data) => {
      const bitmap = await createImageBitmap(await (await fetch(`data:image/png;base64,${data}`)).blob());
      const { width, height } = bitmap;
      const context = new OffscreenCanvas(width, height).getContext("2d");
      context.drawImage(bitmap, 0, 0);
      const pixels = context.getImageData(0, 0, width, height).data;
      const columns = Math.ceil(width / side);
      const sums = Array.from({ length: columns * Math.ceil(height / side) }, () => [0, 0, 0, 0]);
      for (let at = 0; at < pixels.length; at += 4) {
        const y = Math.floor(at / 4 / width);
        const sum = sums[Math.floor(y / side) * columns + Math.floor((at / 4 - y * width) / side)];
        for (let part = 0; part < 3; part += 1) sum[part] += pixels[at + part];
        sum[3] += 1;
      }
      return { width, height, squares: sums.map(([r, g, b, n]) => [r / n, g / n, b / n]) };
    };
    const [one, other] = await Promise.all(pictures.map(averages));
    if (one.width !== other.width || one.height !== other.height) return 1;
    const different = one.squares.filter((colour, at) =>
      colour.some((part, which) => Math.abs(part - other.squares[at][which]) > apart));
    return different.length / one.squares.length;
  },
})
