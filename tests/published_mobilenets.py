"""ImageNet top-1 accuracy of the 16 released MobileNetV1 networks, by the model card of their authors (Howard et al.,
arXiv 1704.04861, figures 4 and 5 draw such a set): rows by width, columns by resolution.
"""

RESOLUTIONS = (224, 192, 160, 128)
TOP1_PERCENT = {
    1.0: (70.9, 70.0, 68.0, 65.2),
    0.75: (68.4, 67.2, 65.3, 62.1),
    0.5: (63.3, 61.7, 59.1, 56.3),
    0.25: (49.8, 47.7, 45.5, 41.5),
}
IMAGES = 50_000  # of ImageNet's validation part
ROWS = [(w, r, a / 100) for w, row in TOP1_PERCENT.items() for r, a in zip(RESOLUTIONS, row, strict=True)]
WIDTH, RESOLUTION, ACCURACY = (list(column) for column in zip(*ROWS, strict=True))
