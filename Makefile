.PHONY: check test notebooks colab

check:  ## 格式与静态检查
	ruff check .
	ruff format --check .

test:  ## 全部测试
	pytest

notebooks:  ## 从头到尾运行每一本练习册
	pytest notebooks tests/test_notebooks.py tests/test_jupyterlab.py

colab:  ## 用 Colab 的那组版本运行每一本练习册（三分钟）
	LORAKIT_COLAB=1 pytest tests/test_colab.py
