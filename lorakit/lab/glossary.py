"""术语表：全书的词都在这里，一个词一个英文、一句人话；练习册第一次用到时照这里写。"""

import difflib
from html import escape

from lorakit.errors import LorakitError
from lorakit.lab.display import publish

TERMS = {
    "神经网络": ("neural network", "一大串可以调的乘法和加法，数进去，数出来；下面简称网络"),
    "训练": ("training", "反复给例子，一点点调网络里的数，让它越猜越准"),
    "样张": ("sample picture", "训练途中画出来、看它学得怎样的图"),
    "混合精度": ("mixed precision", "冻住的底模用省地方的 16 位数，要学的参数用精细的 32 位数"),
    "优化器": ("optimizer", "照着梯度去改参数的工具"),
    "矩阵": ("matrix", "排成行和列的一张数表"),
    "张量": ("tensor", "一块按行、列、层排好的数"),
    "像素": ("pixel", "图上最小的一格颜色"),
    "通道": ("channel", "同样大小的一层数，例如红、绿、蓝各一层"),
    "底模": ("base model", "别人已经训练好、我们拿来接着教的模型"),
    "微调": ("fine-tuning", "在底模上接着练一点点，教它一样新东西"),
    "变分自编码器": ("VAE", "先把图压小、再还原的一对网络"),
    "潜变量": ("latent", "图被压小之后的那一小块数"),
    "重建": ("reconstruction", "把压小的图再还原出来"),
    "峰值信噪比": ("PSNR", "两张图有多像，单位是分贝，越大越像，30 以上很难看出差别"),
    "噪声": ("noise", "随机的数，看上去像没有信号的电视雪花"),
    "正态分布": ("normal distribution", "大多数靠近 0、偶尔偏大的一种随机数"),
    "随机种子": ("seed", "随机数的起点，种子一样，抽到的随机数就一样"),
    "时间步": ("timestep", "噪声占几成，0 是原图，1 是纯噪声"),
    "速度": ("velocity", "从图走到噪声，每单位时间该往哪边、走多远"),
    "流匹配": ("flow matching", "让网络学会每一处的速度，再顺着速度把噪声变成图"),
    "扩散模型": ("diffusion model", "从噪声出发、一步步把图变出来的模型"),
    "损失": ("loss", "网络猜的和正确答案差多少，越小越好"),
    "均方误差": ("MSE", "每个数差多少，平方以后取平均"),
    "梯度": ("gradient", "网络里每个数往哪边改，损失会变大得最快；训练往反方向改"),
    "留出集": ("holdout", "故意不练、只拿来检验的图"),
    "学习率": ("learning rate", "每一步把参数改多大"),
    "批大小": ("batch size", "每一步同时看几张图"),
    "梯度累积": ("gradient accumulation", "攒几批的梯度再更新一次，效果和大批一样，省内存"),
    "采样": ("sampling", "从一块噪声出发，顺着速度走到一张图"),
    "步数": ("steps", "走了几步；训练的步数是更新几次，采样的步数是分几步走完"),
    "时间偏移": ("shift", "把时间步往高噪声一头推，多花力气在构图上"),
    "提示词": ("prompt", "告诉模型要画什么的那句话"),
    "词元": ("token", "模型眼里的一个“字”，一小段文字或一小块图"),
    "注意力": ("attention", "每个词元看看别的词元，挑有用的信息拿过来"),
    "文本编码器": ("text encoder", "把一句话变成一串数的网络"),
    "变换器": ("Transformer", "一种擅长让各处互相看的网络，这里用它猜速度"),
    "无分类器引导": ("CFG", "有提示词和没提示词各猜一次，朝有提示词的方向多走几倍"),
    "线性层": ("linear layer", "用一个矩阵去乘输入的一层"),
    "低秩适配": ("LoRA", "不动原来的大矩阵，只学两个瘦长的小矩阵加在旁边"),
    "秩": ("rank", "拼出一个矩阵用了几层，LoRA 的秩越大，能学的越多，文件也越大"),
    "缩放": ("alpha", "LoRA 的改动要乘上 alpha 除以秩"),
    "奇异值分解": ("SVD", "把一个矩阵拆成从重要到不重要的许多层"),
    "合并": ("merge", "把 LoRA 的改动直接加进原来的矩阵"),
    "检查点": ("checkpoint", "训练途中存下来的一份，断了可以从这里接着练"),
    "过拟合": ("overfitting", "把训练图背了下来，换个东西就不会了"),
    "参数": ("parameter", "网络里可以被训练改动的数"),
    "数据集": ("dataset", "用来训练的图和配它们的话"),
    "描述": ("caption", "告诉模型这张训练图里有什么的一句话"),
    "触发词": ("trigger word", "一个平时不用的词，写上它就叫出学到的东西"),
    "分桶": ("bucketing", "把宽高比差不多的图放在一组，一起裁到同样大小"),
    "分辨率": ("resolution", "图的宽和高各有多少像素"),
    "描述丢弃": ("caption dropout", "训练时偶尔把描述换成空白，让引导有对照"),
    "轮": ("epoch", "把所有训练图都看过一遍"),
    "缓存": ("cache", "算过一次就存下来，下次直接用"),
    "哈希": ("hash", "由内容算出的一串短码，内容变一点，码就完全不同"),
    "拍摄方向标记": ("EXIF orientation", "相机记在照片里的“该转几度才正”"),
    "文字编码": ("encoding", "字在文件里怎么存成字节，通用的是 UTF-8"),
    "控制图": ("control image", "编辑模型照着改的那张图，也就是改之前"),
    "目标图": ("target image", "改好以后该有的样子"),
    "同类图片": ("class pictures", "陪着一起练的普通图，免得模型忘了原来的样子"),
    "遮罩": ("mask", "和图一样大的黑白图，白处要学、黑处不学"),
    "强度": ("strength", "LoRA 的改动乘几倍再加上去，0 是没有，1 是训练时的样子"),
    "叠加": ("stack", "几个 LoRA 一起用，改动加在一起"),
    "负面提示词": ("negative prompt", "告诉模型不要画什么的那句话"),
    "盲测": ("blind test", "不知道哪张是谁画的，只看图来判断"),
    "权重": ("weight", "网络里存下来的那些数"),
    "量化": ("quantization", "用更少的位数存每个权重，省显存，但有一点误差"),
    "搬运": ("offload", "暂时不用的权重放在内存里，用到才搬进显卡"),
    "工作流": ("workflow", "ComfyUI 里用线连起来的一串步骤，存成一个 JSON 文件"),
    "模型卡": ("model card", "随 LoRA 一起发布的说明书，写着底模、触发词、样张和许可"),
    "梯度裁剪": ("gradient clipping", "一步的梯度太长就缩短，防止一张怪图带偏训练"),
    "热身": ("warmup", "开头几步把学习率从小升到大，免得一开始就走偏"),
    "梯度检查点": ("gradient checkpointing", "中间结果不留着，用到时重算"),
    "CUDA 图": ("CUDA graph", "把一步里派给显卡的活录下来，以后整个重放"),
    "全量微调": ("full fine-tuning", "不加 LoRA，模型的每个权重都练"),
    "网格": ("grid", "把许多图按行列摆在一起比较"),
    "许可": ("licence", "作者写明你能拿它做什么、不能做什么"),
    "双流块": ("double-stream block", "文字和图各用各的权重、只在注意力里碰头的一块网络"),
    "单流块": ("single-stream block", "文字和图的词元排成一队、共用一套权重的一块网络"),
    "打包": ("pack", "把潜变量每 2x2 格并成一个词元"),
    "消融": ("ablation", "一次只改一样，看它到底起多大作用"),
    "蒸馏": ("distillation", "让一个网络一遍就给出原来要算好几遍才有的结果"),
    "遗忘": ("forgetting", "学了新的，原来会的变差了"),
    "考官": ("examiner", "一个看图说出里面是什么、什么画风的小网络，替我们打分"),
}

# 术语 -> 社区里（别的教程、训练器、视频）的叫法；照这些也查得到
ALSO = {
    "描述": ("打标", "标签", "标注"),
    "同类图片": ("正则化图", "正则图"),
    "留出集": ("验证集",),
    "热身": ("预热",),
    "搬运": ("卸载",),
    "强度": ("LoRA 权重",),
    "批大小": ("批量大小",),
    "变换器": ("Transformer",),
}
CLASH = {"权重": "社区里说一个 LoRA 的“权重”（<lora:名字:0.8>），多半指强度"}


def sentence(name: str) -> str:
    """术语第一次出现时的写法：**中文**（English，一句人话）。"""
    english, said = TERMS[_known(name)]
    return f"**{name}**（{english}，{said}）"


def term(name: str = ""):
    """查一个词；不给词就列出全部。中文、英文都行。"""
    names = [_known(name)] if name else list(TERMS)
    rows = [(n, TERMS[n][0], TERMS[n][1] + _also(n)) for n in names]
    items = "".join(f"<p><b>{escape(n)}</b>（{e}）：{escape(s)}。</p>" for n, e, s in rows)
    text = "\n".join(f"{n}（{e}）：{s}。" for n, e, s in rows)
    publish({"text/html": items, "text/plain": text})


def _also(name: str) -> str:
    """社区里的叫法，接在解释后面；没有别的叫法是空的。"""
    said = f"；社区也叫 {'、'.join(ALSO[name])}" if name in ALSO else ""
    return said + (f"；{CLASH[name]}" if name in CLASH else "")


def _known(name: str) -> str:
    for ours, theirs in ALSO.items():
        if name in theirs:
            return ours
    english = {e.lower(): n for n, (e, _) in TERMS.items()}
    if name in TERMS or name.lower() in english:
        return name if name in TERMS else english[name.lower()]
    near = difflib.get_close_matches(name.lower(), [*TERMS, *english], n=3, cutoff=0.3)
    inside = [n for n in TERMS if name in n or n in name]
    guess = "、".join(dict.fromkeys([*inside, *(english.get(n, n) for n in near)]))
    tail = f"是不是想查：{guess}？" if guess else "运行 lab.term() 看全部。"
    raise LorakitError(f"术语表里没有“{name}”。{tail}")
