"""What a run imports until its first checkpoint, for the process that runs are forked from."""

import PIL.Image
import torch
import torch._dynamo  # DCP does
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp

import eva_fast.objectives.eva
import eva_fast.recipes.ending
import eva_fast.recipes.pretrain
import eva_fast.teachers.hog
import eva_fast.train.captured
import eva_fast.train.checkpoint_reader
import eva_fast.train.checkpoint_writer
import eva_fast.train.loop
import eva_fast.train.same_data
import eva_fast.train.sharding
import eva_fast.train.together  # noqa: F401

PIL.Image.init()
torch.set_num_threads(1)
