package tracer_test

func swapAndDie() {}
