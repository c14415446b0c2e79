# %% [markdown]
# # mode_ray in Python
#
# This notebook loads the ensemble of a finished run and classifies images with it. `make demo` makes such a run in
# `demo-run/run`. For another run set the environment variable `MODE_RAY_RUN` to a run directory, to a folder that
# `mode-ray export` wrote, or to `hf-hub:ORG/NAME`. The complete reference is docs/api.md.

# %%
import os

from PIL import Image

import mode_ray

source = os.environ.get("MODE_RAY_RUN", "demo-run/run")
ensemble = mode_ray.load(source, device="auto")
images = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]  # or paths of your own images
found = ensemble.classify(images, ["a red square", "a blue square"], templates=["a picture of {}"])
print(found.labels, found.scores, found.weights)

# %% [markdown]
# `to_list` has the format of Hugging Face's zero-shot pipelines.

# %%
print(found.to_list()[0])

# %% [markdown]
# ## Tasks
#
# The texts of a task decide how much weight each expert gets. A task is routed once and used many times. `why` lists
# the fine clusters that gave most of the weight.

# %%
task = ensemble.task(["apple", "banana", "bus"], ["a picture of a {}."])
print(task)
for reason in task.why(count=3):
    print(reason)
print(ensemble.classify(images, task).labels)

# %% [markdown]
# ## Embeddings
#
# Image embeddings do not depend on a task: compute them once. Their inner product with the text embeddings is the
# ensemble's score.

# %%
image_rows = ensemble.encode_image(images)
text_rows = ensemble.encode_text(["a red apple", "a blue bus"])
print(image_rows.shape, image_rows @ text_rows.T)

# %% [markdown]
# ## The open_clip interface
#
# Code that expects an open_clip model runs on the ensemble.

# %%
import torch

model, _, preprocess = ensemble.create_model_and_transforms(task=task)
tokenizer = ensemble.get_tokenizer()
with torch.no_grad():
    features = model.encode_image(torch.stack([preprocess(image) for image in images]))
    classes = model.encode_text(tokenizer(["a picture of a apple.", "a picture of a banana.", "a picture of a bus."]))
print((features @ classes.T).softmax(dim=-1))

# %% [markdown]
# ## Clusters
#
# The clustering assigns new captions to fine clusters and experts. It needs no trained model.

# %%
clustering = ensemble.clustering
fine, squared_distance = clustering.assign(["a red apple", "a bus in the city"])
print(fine, squared_distance, clustering.expert_of(fine, n=ensemble.n))
