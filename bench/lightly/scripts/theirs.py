import lightly_train

lightly_train.pretrain(
    data="photographs",
    method="distillation",
    model="torchvision/resnet18",
    method_args={"teacher": "dinov2/vits14"},
    out="runs/resnet18",
)
