"""微型模型的权重是怎么练出来的；只在重做它们时用，`python -m lorakit.tiny.pretrain`。"""
