.PHONY: check test notebooks

check:  ## 格式与静态检查
	ruff check .
	ruff format --check .

test:  ## 全部测试
	pytest

notebooks:  ## 从头到尾运行每一本练习册
	pytest tests/test_notebooks.py tests/test_jupyterlab.py
