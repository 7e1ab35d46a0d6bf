"""先猜后看的题：一本一个文件，按名字取；答案和解释都在这里，练习册里看不见。"""

from lorakit.lab.questions.bank import MOMENTS, Question, bank, clinic, exam, recall

__all__ = ["MOMENTS", "Question", "bank", "clinic", "exam", "recall"]
