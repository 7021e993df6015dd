"""Shared code of the course on unsupervised semantic segmentation.

Importing the package does no work: no seeds, no downloads, no device is picked.
This is its map; begin reading where a star stands, the rest works behind those modules.
Imports point one way: methods use the shared modules, never the reverse.

Data
    datasets *      load(name, split): the table of data sets
      base, files     what every data set offers; sets made of image and label files
      scenes          generated streets and aerial views, drawn by the _ modules
      camvid, folder  CamVid's photographs; a folder of your own, labels optional
      coco, cocostuff, cityscapes, potsdam, voc   the benchmarks
      potsdam_tiles   cutting Potsdam's tiles into patches, split by tile
      sbd             SBD's labels for VOC's split trainaug
      mat_files       MATLAB's files, checked length by length
      crops           five stored crops per image: writing and reading them
      roots           where a stored set lies; processes: many files over the cores
      labels          label maps, class names, palettes
      transforms      resizing, cropping, normalising, and back
      turning         turning and zooming an image with its label
      objects         any set with all but chosen classes as background
      inventory       what of a set is there, what is missing, the next step
      download        fetching public sets; camvid_download, coco_download,
                      voc_download: these three
    pictures        any picture of a user as RGB, and the size to work at
    photo_folder *  a folder of photographs segmented, file by file
      photo_files     which of its files can be used, and why the others cannot
      photo_training  a method trained on it
      painting        label maps as files to look at; contact_sheet: one page of all
    batches         shuffled batches for training, ordered ones for the rest
    sampling        random patches and pixels of features and labels
    shortcuts *     how far one clue gets: row, square, colour

Backbone and features
    backbones *     load(name): a frozen network, image to feat
      frozen          what each of them promises; the controls that learn nothing
      vit             vision transformers: one pass, many outputs
      last_block      the last block taken off, to be trained
      vit_weights     their weight files, checked; the model hub
    resnets         ResNets on fine grids, to be trained: ImageNet's or MoCo's weights
    pixel_embedder  a network that embeds every pixel; its form as a head
    hierarchy_network  another one, with groupings of its segments; as a head
    features *      extract, FeatureCache, sample_at, correspondence_heatmap
      extraction      the loop over the images
      feature_cache   features on disk, fp16, memory-mapped, never stale
      resumable       a large file that survives being killed
    neighbours *    which images look alike; neighbour_index: kept on disk
    sources         features of a training set: in memory, on disk, or recomputed
    heads           maps from feat to code
    coded           a trained head on its backbone, as a backbone
    correspondence * how similar the places of two images are, pair by pair

Grouping
    clustering *    k-means: spherical, Euclidean, mini-batch
    pca             principal components, whitening
    probes *        cluster probe, linear probe, their maps at pixel resolution
    upsampling      from patches to pixels
    readout         both probes: trained alongside a code, or fitted after it
    rows            checks and slices of feature vectors
    positives       patches more alike than a reference pool; the loss on them
    contrast        contrastive loss over a whole batch, one image's rows at a time
    regions *       regions of an image at every scale: a tree, cut anywhere
      region_merging  the loop that merges neighbours
    region_files *  those of a data set on disk; map_files: maps of any kind
    mask_files *    masks of objects on disk; mask_making: made from features
    segments *      objects: one embedding each, clusters, retrieval from a memory
      segment_maps    their prototypes, and maps painted from them
    clustering_transformer *  groups among the segments of an image
      grouping        fine groups, and coarse groups of these
    hierarchy *     nested regions of an image: maps, a tree, files
    local_attention  neighbours weighed by attention, mixed into a code
    photometric     an image in other colours
    saliency *      object masks from features, nothing trained
      normalised_cut  the graph of patches and its second eigenvector
      saliency_head   a head that learns such masks; their balanced loss
      mask_cleaning   the CRF along their edges, specks dropped

Evaluation
    evaluation *    evaluate(): one protocol, one record for every method
      protocol        its switches
      counting        one pass over the data
      scoring         counts to scores, the parts of a record
      scored_batches  labels at the size they are stored in
    segment_evaluation *  objects scored: k-means, retrieval
      segment_tables  one pass over the data; the switches
    covering *      how well regions of any level cover the objects
    linear_classifier *  a linear probe by SGD on augmented images
    metrics *       confusion, matching, IoU
    crf             dense CRF, over the processes of _crf_worker
    similarity *    how well features keep classes apart, nothing fitted
    monitors *      what can be watched where there are no labels
    records *       results on disk; boards: tables made from them
    comparison *    all methods in one table, from records; study: which are missing
    comparison_classes  its classes: how each fares, what it is called
    published       what the papers report, number by number with its source
    segmenter *     a trained model as one object
    model_file      that object on disk
    naming *        names for its clusters, given by a person, in a file
    checkpoint_import  one from a file that a method's authors released

Training
    training *      fit(): the one loop
      update          one step: loss, guard, clipping, optimisers
      schedules       learning rates, averaged weights
      history         figures of a run, and its progress
      run_state       what a resumed run has to put back
      ranks           what the processes of one training exchange
      launch          joining the processes that a launcher started
      joined_norm     batch norms and dropout over what all of them see
      checkpoints     tensors and JSON in one file, without pickle
    pretraining *   the tiny ViT; unlabelled: its images; views: their augmentations
    weights_card    the weights that ship, and the card that tells their story
    learning *      what all methods' training shares, and several seeds at once
    fitting         a method's training as its settings say; its untrained network
    presets         settings by name, checked; recipe: those that methods share
    methods *       one module per method; kmeans: the zeroth
    cost *          what a training would take: estimate()
      cost_facts      what the settings alone say
      cost_measuring  a short run of it, in a process; cost_passes: its parts
      cost_stand_ins  for data and weights that are not there
      cost_words      the estimate in words
      cost_commands   the command line's part
    paper_recipes * how to train what the papers report: commands, disk, scores
    runs            the command line's train and evaluate
    data_commands   the command line's part for data sets
    pretrain_commands  its part for pretraining
    command_options its shared options, the examples in its help
    segment_commands  its part for photographs of one's own
    preparation     crops and neighbour lists of a set, made before training

Teaching and course
    plots *         every figure; of charts, distributions, colours, figures
    diagrams *      drawings that explain; proxies: those of walking anchors,
                    masks_shown: of masks that grow and vote, objects_shown and
                    segments_shown: of objects cut out, told apart, found again
                    regions_shown: of regions, groups_shown: of what groups them,
                    hierarchy_shown: of levels that nest,
                    comparison_shown: of methods side by side
                    scaling_shown: of steps, number formats, shared batches
    widgets *       controls around a drawing function
      naming_widget   those for naming clusters by clicking
    teaching *      show_source, record, check; exercises: what check knows
    scaling_runs    trainings in processes of their own, timed and killed
    photo_examples  a folder of pictures of all kinds, some broken, to try things on
    course          runs the notebooks; notebooks: which, with which parameters
    pages           the page of a run; publishing: what of it is committed
    book            notebooks and documents as one site; book_style: its looks
      book_commands   the command line's part
    memory          peak memory of a notebook's processes
    environment *   device, seeds, versions; installation *: is all installed?
    paths           the only builder of paths, and how files are replaced
    json_files      how the JSON beside data is read back
"""

__version__ = "0.1.0"
