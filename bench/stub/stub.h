/* What both halves of the stub count, in the order of `bench.stub.device.KINDS`. */
enum { STUB_LAUNCH, STUB_GRAPH, STUB_COPY, STUB_SYNC, STUB_ALLOCATION, STUB_KINDS };
void stub_did(int kind);
int stub_attribute(int attribute);
