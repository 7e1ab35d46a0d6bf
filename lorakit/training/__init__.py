"""训练循环的零件：setup 准备、preflight 开练前核对、objective 损失、optim 更新、saving 存与接。"""
