package faultpolicy

import "github.com/faultgraft/faultgraft/policy/strictyaml"

// problem is something wrong with a policy, whose place is found later.
type problem struct {
	path    string
	offset  int // in the text at path, bytes
	message string
	fix     string
}

type problems []*problem

func (p *problems) add(path, message, fix string) {
	*p = append(*p, &problem{path: path, message: message, fix: fix})
}

// errors gives the problems their places in a document; nil: there is none.
func (p problems) errors(doc *strictyaml.Document) strictyaml.Errors {
	errs := make(strictyaml.Errors, 0, len(p))
	for _, one := range p {
		if doc == nil {
			errs = append(errs, &strictyaml.Error{Path: one.path, Message: one.message, Fix: one.fix})
			continue
		}
		errs = append(errs, doc.ErrorAt(one.path, one.offset, one.message, one.fix))
	}
	return errs
}
