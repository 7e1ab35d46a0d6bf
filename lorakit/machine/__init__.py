"""这台机器：估显存与时间（estimate）、下载前体检（doctor）、排练（rehearse）、测速（bench、trace）。"""
