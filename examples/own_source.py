"""A source of images of one's own, explained in docs/extend/source.md."""

import numpy as np


class Squares:
    """Grey pictures with a bright square, in one of four corners."""

    corners = ("top left", "top right", "bottom left", "bottom right")

    def __len__(self):
        return 400

    def __getitem__(self, number):
        pixels = np.full((48, 48, 3), 60, np.uint8)
        below, right = divmod(number % 4, 2)
        pixels[8 + 20 * below :, 8 + 20 * right :][:12, :12] = 250
        caption = f"a square, {self.corners[number % 4]}"
        return {"image": pixels, "label": number % 4, "caption": caption, "tags": [below, right]}


if __name__ == "__main__":
    import eva_fast

    result = eva_fast.pretrain(data=Squares(), steps=200, batch_size=32, out="runs/own-source")
    print(result.metrics["gain"], result.picture)
