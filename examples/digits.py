"""The README's example: a trained CNN becomes Verilog that equals its integer network bit by bit."""

from hwgen import flow

data = flow.load_dataset("digits")
model = flow.load_model("digits-tiny", data=data)
network = flow.quantize(model, data, flow.quant_config("8"))
print(f"{flow.integer_accuracy(network, data):.2%} of the test images")
dataflow = flow.fold_network(network, flow.HardwareOptions.of("ice40-up5k", fps=1000))
design = flow.generate(dataflow)
images = flow.input_codes(network, data, 3)
(check,) = flow.cosimulate(dataflow, design, images, images={flow.Simulator.ICARUS: 3})
check.check()
print(f"{check.images} images equal, {check.bulk.interval} cycles each")
