# One target for each stage of dvc.yaml: `snakemake --cores all -- images` makes every image set of the study, and what
# that needs. The outputs of a stage lie in one folder, results/<stage>; the tables have a rule of their own.


rule data:
    input:
        of_stage("data"),


rule erased:
    input:
        of_stage("erased"),


rule finetuned:
    input:
        of_stage("finetuned"),


rule images:
    input:
        of_stage("images"),


rule scores:
    input:
        of_stage("scores"),


rule presented:
    input:
        [
            getattr(rules, record.name).output
            for record in RULES.values()
            if record.dvc_stage == "tables" and any(outputs(STUDY, record))
        ],
