package web

var suppliersTexts = texts{}
