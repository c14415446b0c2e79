"""Real image-caption pairs for a first run, made on the spot from Python packages: no download, no account.

`build.build_demo_data` draws the emoji of OpenMoji (CC BY-SA 4.0) and the cloud and software icons of
`diagrams`, words captions from their published names and groups, and writes WebDataset tars, held-out tars
and task files. The packages come with the extra `mode_ray[demo]`.
"""
