"""What a run imports before its first step, for the process that runs are forked from."""

import torch
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp

import eva_fast.objectives.eva
import eva_fast.recipes.ending
import eva_fast.recipes.pretrain
import eva_fast.train.checkpoint_reader
import eva_fast.train.checkpoint_writer
import eva_fast.train.loop
import eva_fast.train.sharding
import eva_fast.train.together  # noqa: F401

torch.set_num_threads(1)
