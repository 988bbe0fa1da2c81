"""The README's example: a trained LeNet-5 becomes Verilog that was compared with its integer network."""

from hwgen import flow

data = flow.load_dataset("digits")
model = flow.load_model("lenet5", data=data)
network = flow.quantize(model, data, flow.quant_config("8"))
print(f"{flow.integer_accuracy(network, data):.2%} of the test images")
dataflow = flow.fold_network(network, flow.HardwareOptions.of("ecp5-85k", fps=5000))
design = flow.generate(dataflow)
(check,) = flow.cosimulate(
    dataflow, design, flow.input_codes(network, data, 3), images={flow.Simulator.VERILATOR: 3}
)
check.check()
print(
    f"{check.images} images equal, {check.bulk.interval} cycles each, {design.verilog.count(chr(10))} lines"
)
