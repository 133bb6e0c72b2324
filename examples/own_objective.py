"""An objective of one's own, explained in docs/extend/objective.md."""

import torch
import torch.nn.functional as F
from torch import nn

from eva_fast.data import BlockMaskField
from eva_fast.objectives import Objective
from eva_fast.objectives.picture import save_columns


class Painter(nn.Module):
    """The student, a head that paints patches, and a mean colour that follows the images."""

    def __init__(self, student):
        super().__init__()
        self.student, self.patch = student, student.sizes.patch_size
        self.paint = nn.Linear(student.sizes.embed_dim, 3 * self.patch**2)
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("seen", torch.zeros(2, 3, 1, 1), persistent=False)  # sum, images

    def forward(self, images, mask):
        """Colours of all patches less the mean, [B, N, 3*p*p], from the visible ones."""
        return self.paint(self.student.forward_features(images, mask)[:, 1:].float())


class Pixels(Objective):
    name, metrics = "pixels", ("colours_off",)

    def sample(self, setting):
        return [*super().sample(setting), BlockMaskField(setting.sizes.grid, count=8, min_block=2)]

    def build(self, setting, teacher):
        return Painter(setting.student(predict_dim=1))

    def loss(self, module, batch, target):
        colours = batch.images.float() / 255
        module.seen[0] += colours.mean((2, 3), keepdim=True).sum(0)
        module.seen[1] += len(colours)
        wanted = F.pixel_unshuffle(colours - module.mean, module.patch).flatten(2).mT
        masked = batch.mask.long()[..., None].expand(-1, -1, wanted.shape[2])
        painted = module(batch.images, batch.mask).gather(1, masked)
        off = (painted.detach() - wanted.gather(1, masked)).abs().mean()
        return F.smooth_l1_loss(painted, wanted.gather(1, masked)), {"colours_off": 255 * off}

    def start(self, module, teacher, setting, batches):
        module.mean.copy_(next(batches(16)).images.float().mean((0, 2, 3))[:, None, None] / 255)

    def after_step(self, module, applied):
        sums, count = module.seen
        module.mean.lerp_(torch.where(applied, sums / count, module.mean), 0.1)
        module.seen.zero_()

    def exported(self, module):
        return module.student

    def picture(self, path, module, teacher, batch):
        rows = module(batch.images, batch.mask).mT.unflatten(2, module.student.grid)
        painted = (F.pixel_shuffle(rows, module.patch) + module.mean).clamp(0, 1) * 255
        save_columns(path, {"image": batch.images, "painted": painted.byte()})


if __name__ == "__main__":
    import eva_fast

    result = eva_fast.pretrain(objective=Pixels, steps=200, batch_size=32, out="runs/own-objective")
    print(result.metrics["colours_off"], result.picture)
