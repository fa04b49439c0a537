"""Recipes and options that several methods have in common; their decorators name them.

Source: the published commands of the surveys and of CAM, NEGEV and PixelCAM (docs of each method's `source`).
"""

SURVEY_SGD = {"batch_size": 32, "weight_decay": 1e-4, "momentum": 0.9, "optimizer": "sgd", "lr_floor": 1e-6}
SURVEY_HEADS = {**SURVEY_SGD, "head_lr_scale": 10.0}  # new layers learn ten times as fast
GLAS_SCHEDULE = {"epochs": 1000, "step_epochs": 250, "gamma": 0.1}
CAMELYON16_SCHEDULE = {"epochs": 20, "step_epochs": 5, "gamma": 0.1}
DEIT_ONE_RATE = {  # one rate for all, as DeiT is trained
    "*/deit_tiny_patch16_224": {"head_lr_scale": 1.0},
    "*/deit_small_patch16_224": {"head_lr_scale": 1.0},
    "*/deit_base_patch16_224": {"head_lr_scale": 1.0},
}
FROZEN_ENCODER_SMOKE = {
    "*": {"epochs": 10, "step_epochs": 8, "source": "our choice: a decoder on a frozen encoder learns quickly"}
}
FROZEN_ENCODER_QUICK = {
    "*": {"lr": 0.03, "source": "our choice: the rate that the preset gives to new layers of others"}
}
TWO_STEP_OPTIONS = {  # of the plain member of the family; the others change some
    "teacher": "layercam", "sampler": "otsu", "foreground": 1, "background": 1, "area": 0.1, "erosion": 11,
    "dilation": 3, "flat_background": False, "negatives": "dense", "decoder": "unet", "freeze": True,
    "lambda_pseudo": 1.0, "lambda_negative": 1.0, "lambda_crf": 0.0, "crf_size": 56, "lambda_joint": 0.0,
    "lambda_size": 0.0, "elb_start": 1.0, "elb_max": 10.0, "elb_mu": 1.01,
    "head": "teacher", "gated": False, "width": 128, "dropout": 0.1,
}  # fmt: skip
TWO_STEP_RENAMED = {"lambda_pseudo": "lambda_seed"}
TWO_STEP_CHOICES = {
    "sampler": ("otsu", "prob", "prob_area"), "negatives": ("skip", "background", "dense"),
    "decoder": ("unet", "linear"), "head": ("teacher", "gap", "attention"),
}  # fmt: skip
