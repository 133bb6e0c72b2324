import eva_fast

eva_fast.pretrain(
    data="photographs",
    objective="fd",
    model="torchvision/resnet18",
    teacher="dinov2_vits14.pth",
    out="runs/resnet18",
)
