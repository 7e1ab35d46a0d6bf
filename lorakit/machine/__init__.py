"""这台机器：estimate 算显存与时间，doctor 在下载之前体检，bench 测速，trace 看时间花在哪。"""
