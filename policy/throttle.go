package policy

import (
	"strconv"
	"strings"
)

// maxOps bounds operations per second and in a burst.
const maxOps = 1e9

const throttleFix = "write throttle=10MiB/s, throttle=200ops/s or both with a comma"

func (p *ruleParser) throttle(w word) *SyntaxError {
	t := p.throttled()
	for _, part := range w.value.split(",") {
		rate, ok := strings.CutSuffix(part.text, "/s")
		amount := part.part(0, len(rate))
		ops, isOps := strings.CutSuffix(rate, "ops")
		switch {
		case strings.HasSuffix(part.text, "iops"):
			return p.at(part.at(0), "did you mean "+strings.TrimSuffix(part.text, "iops")+"ops/s?", "throttle=%s is not a rate", part.text)
		case !ok && strings.Contains(part.text, "/"):
			return p.at(part.at(strings.IndexByte(part.text, '/')), throttleFix, "a rate is per second: /s")
		case !ok && strings.HasSuffix(strings.ToLower(part.text), "ps"):
			return p.at(part.at(0), bitsFix+": write throttle=1MB/s", "throttle=%s is not a rate", part.text)
		case !ok:
			return p.at(part.at(0), throttleFix, "throttle=%s has no /s", part.text)
		case isOps && t.OpsPerSec != 0 || !isOps && t.BytesPerSec != 0:
			return p.at(part.at(0), throttleFix, "two rates of one kind")
		}
		var err *SyntaxError
		if isOps {
			t.OpsPerSec, err = p.operations(amount.part(0, len(ops)))
		} else {
			t.BytesPerSec, err = p.size(amount, 1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *ruleParser) burst(w word) *SyntaxError {
	t := p.throttled()
	for _, part := range w.value.split(",") {
		ops, isOps := strings.CutSuffix(part.text, "ops")
		if isOps && t.BurstOps != 0 || !isOps && t.BurstBytes != 0 {
			return p.at(part.at(0), "write burst=1MiB, burst=20ops or both with a comma", "two bursts of one kind")
		}
		var err *SyntaxError
		if isOps {
			t.BurstOps, err = p.operations(part.part(0, len(ops)))
			if err == nil && t.BurstOps < 1 {
				err = p.at(part.at(0), "the least is 1ops", "a burst of %s lets nothing pass", part.text)
			}
		} else {
			t.BurstBytes, err = p.size(part, 1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// throttled gives the rule's throttle; burst may come before throttle.
func (p *ruleParser) throttled() *Throttle {
	if p.rule.IO.Throttle == nil {
		p.rule.IO.Throttle = &Throttle{}
	}
	return p.rule.IO.Throttle
}

func (p *ruleParser) operations(v value) (float64, *SyntaxError) {
	n, err := p.ratio(v, "the number of operations", throttleFix)
	if err == nil && n > maxOps {
		err = p.at(v.at(0), "the largest is "+strconv.FormatFloat(maxOps, 'f', -1, 64), "the number of operations %s is too large", v.text)
	}
	return n, err
}

// checkThrottle checks what throttle and burst need of each other and of the operations.
func (p *ruleParser) checkThrottle() *SyntaxError {
	burst, hasBurst := p.seen["burst"]
	throttle, hasThrottle := p.seen["throttle"]
	t := p.rule.IO.Throttle
	switch {
	case hasBurst && !hasThrottle:
		return p.at(burst.at, throttleFix, "burst without throttle")
	case hasBurst && t.BurstBytes != 0 && t.BytesPerSec == 0:
		return p.at(burst.value.at(0), "add a rate such as 10MiB/s to throttle", "a burst of bytes, but throttle has no rate of bytes")
	case hasBurst && t.BurstOps != 0 && t.OpsPerSec == 0:
		return p.at(burst.value.at(0), "add a rate such as 200ops/s to throttle", "a burst of operations, but throttle has no rate of operations")
	case hasThrottle && t.BytesPerSec != 0 && p.rule.IO.Ops&OpsMoving == 0:
		return p.at(throttle.value.at(0), "leave the bytes out, or add "+OpsMoving.list(), "a rate of bytes means nothing for %s", p.rule.IO.Ops.list())
	}
	return nil
}
