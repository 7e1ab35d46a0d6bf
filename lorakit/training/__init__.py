"""训练循环的零件：setup 准备，preflight 开练前核对，objective 损失，optim 更新，saving 存与接。

processes 几个进程，peers 有一个没了怎么收场，graphs 录成 CUDA 图，rounding 练 bf16 的权重；
plan 步数的算术，times 练哪些 t，forecast 照设置体检数据。
"""
