"""一次训练写下什么：folder 文件夹与记录，lock 占住它，checkpoint 检查点，sameness 接得上吗。

report、board 画图，verdict 判断，card 模型卡，publish 发布，track 另记到别处。
"""
